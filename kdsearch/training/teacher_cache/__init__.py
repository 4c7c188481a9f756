"""A teacher's outputs, computed once per (augmentation, sample, view), in memory and on disk."""

from __future__ import annotations

from kdsearch.training.teacher_cache.disk import MAX_DISK_BYTES, Disk
from kdsearch.training.teacher_cache.outputs import MAX_BYTES, TeacherOutputs

__all__ = ["MAX_BYTES", "MAX_DISK_BYTES", "Disk", "TeacherOutputs"]
