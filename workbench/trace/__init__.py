"""The trace: schema, recorder, files and tables. Knows nothing of models and imports no torch."""

from workbench.trace.recorder import Recorder
from workbench.trace.records import Step
from workbench.trace.schema import SCHEMA
from workbench.trace.trace import Trace

__all__ = ["SCHEMA", "Recorder", "Step", "Trace"]
