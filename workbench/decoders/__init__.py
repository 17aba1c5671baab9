"""One file per decoder; all of them stand in `workbench/members.py`."""

from workbench.members import room

__getattr__ = room(__name__)
