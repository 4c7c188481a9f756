"""Cache of a teacher's outputs per (augmentation, sample, view), in memory and on disk.

Every view is computed once; stored rows equal the live ones to float32 rounding. These modules
import `models` and `data`.
"""

from __future__ import annotations

from kdsearch.training.teacher_cache.disk import MAX_DISK_BYTES, Disk
from kdsearch.training.teacher_cache.outputs import MAX_BYTES, TeacherOutputs

__all__ = ["MAX_BYTES", "MAX_DISK_BYTES", "Disk", "TeacherOutputs"]
