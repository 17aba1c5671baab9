"""Pages that were closed leave nothing behind; open ones, and those just closed, are left alone."""

from datetime import datetime, timedelta

import gradio as gr
from gradio.state_holder import StateHolder

from workbench.dashboard.serve import forget_closed


def test_only_pages_closed_for_long_are_forgotten():
    with gr.Blocks() as app:
        gr.Textbox()
    holder = StateHolder()
    holder.set_blocks(app)
    for name, closed, minutes in (("open", False, 60), ("just closed", True, 1), ("closed", True, 10)):
        holder[name].is_closed = closed
        holder.time_last_used[name] = datetime.now() - timedelta(minutes=minutes)
    forget_closed(holder, older=300)
    assert list(holder.session_data) == list(holder.time_last_used) == ["open", "just closed"]
