"""One file per scorer; all of them stand in `workbench/members.py`."""

from workbench.members import room

__getattr__ = room(__name__)
