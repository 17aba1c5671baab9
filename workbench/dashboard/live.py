"""A run as it goes on: what a page that watches one asks for again and again.

An event of Gradio costs some 10 ms of processor time whatever it carries. This route, served beside Gradio's own, costs
a fraction of one, so that many pages can watch while the processor decodes.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workbench.dashboard import panel as page
from workbench.dashboard.visit import VISITS, Visit

__all__ = ["NOTHING", "REST", "ROUTES", "answer"]

NOTHING, REST = "{}", '{"rest":true}'


def answer(visit: Visit | None, run: str, rounds: int, cursor: int, phase: str) -> str:
    """The JSON text for a page that has drawn this run up to that many rounds, the cursor and the phase there.

    `NOTHING` where there is nothing new, or the visit is busy; `REST` where the page should fire its `tick` event: the
    run is no longer decoded, or it is looked at phase by phase. Else what the trace view draws.
    """
    if visit is None:
        return REST
    if not visit.lock.acquire(blocking=False):  # this is the server's one event loop
        return NOTHING
    try:
        visit.hear()
        if visit.worker is None or not visit.worker.is_alive():
            return REST
        branch = visit.branch
        mine = branch.run.trace.id == run
        place = (str(branch.reached), "" if branch.phase is None else str(branch.phase))
        if mine and rounds >= branch.run.rounds and place == (str(cursor), phase):
            return NOTHING
        return REST if branch.phase is not None else page.view(visit, rounds if mine else 0)
    finally:
        visit.lock.release()


async def _live(request: Request) -> Response:
    asked = request.query_params
    try:
        rounds, cursor = int(asked.get("rounds", 0)), int(asked.get("cursor", -1))
    except ValueError:
        return Response("rounds and cursor: expected whole numbers", status_code=400)
    visit = VISITS.get(request.path_params["page"])
    text = answer(visit, asked.get("run", ""), max(rounds, 0), cursor, asked.get("phase", ""))
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})


ROUTES = [Route("/live/{page}", _live)]
