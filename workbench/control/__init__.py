"""What watches and steers a run: signals of a distribution, gates that decide by them, scorers of hypotheses, and
constraints, which say which texts may be written."""

from workbench.control import scorers as scorers
from workbench.control import signals as signals
from workbench.members import room

__getattr__ = room(__name__)
