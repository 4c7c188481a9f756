"""Views on disk: the next process asks the teacher about nothing, and trusts no file blindly."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_cache import (
    EVERYTHING,
    FEED,
    IMAGES,
    LOGITS,
    PLAIN,
    RECIPES,
    STAGE_BYTES,
    TEACHER,
    VIEW_BYTES,
    view_of,
)
from toy_data import CPU, distiller_for, images, rows_of, tiny_model, toy_data

from kdsearch.data.base import Augment
from kdsearch.data.feed import Feed
from kdsearch.data.views import augmented
from kdsearch.models import students
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model, Preprocess
from kdsearch.spec import DistillSpec, StudentSpec, TrainSpec
from kdsearch.training.step import Session
from kdsearch.training.teacher_cache import Disk, TeacherOutputs
from kdsearch.training.teacher_cache.key import VIEWS_VERSION
from kdsearch.training.teacher_cache.parts import GROUPS
from kdsearch.training.trainer import train

ROWS = torch.tensor([3, 90, 11, 64])
STAGES = frozenset({"stages"})
MIXED = replace(PLAIN, mix="cutmix")
HEADERS = len(GROUPS) * 4096
ONE_FILE = VIEW_BYTES + HEADERS  # what one more view must find free: its header may be as long


def opened(folder: Path, teacher: Model = TEACHER, **given: int) -> TeacherOutputs:
    """Return what a new process would make."""
    disk_bytes = given.pop("disk_bytes", 2**24)
    disk = Disk(cache_dir=folder, data_key="toy", max_bytes=disk_bytes)
    return TeacherOutputs(teacher, FEED, **{"view_seed": 5, **given}, disk=disk)


def ask(
    cache: TeacherOutputs, view: int = 1, *, need: frozenset[str] = LOGITS, augment: Augment = PLAIN
) -> Outputs:
    return rows_of(
        cache, view_of(ROWS, view, augment=augment), ROWS, view, need=need, augment=augment
    )


@contextmanager
def counted(teacher: Model) -> Iterator[list[int]]:
    """List the sizes of the batches that the teacher evaluates."""
    sizes: list[int] = []
    handle = teacher.network.module.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    try:
        yield sizes
    finally:
        handle.remove()


def asked_of(folder: Path, teacher: Model = TEACHER, **given: int) -> int:
    """Return how many samples a new process asks the teacher about for view 1."""
    with counted(teacher) as sizes:
        ask(opened(folder, teacher, **given))
    return sum(sizes)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "teacher").rglob("*.*"))


def assert_same(one: Outputs, other: Outputs) -> None:
    """Compare to the last bit."""
    for name in EVERYTHING - {"attention"}:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


@pytest.mark.parametrize("augment", RECIPES, ids=lambda augment: f"{augment.policy}-{augment.mix}")
def test_stored_and_read_again_every_part_has_the_same_bits(
    tmp_path: Path, augment: Augment
) -> None:
    live = TeacherOutputs(TEACHER, FEED, view_seed=5)
    cold, warm = opened(tmp_path), opened(tmp_path)
    for view in (1, 2):
        wanted = ask(live, view, need=EVERYTHING, augment=augment)
        assert_same(ask(cold, view, need=EVERYTHING, augment=augment), wanted)
        assert_same(ask(warm, view, need=EVERYTHING, augment=augment), wanted)
    assert len(files(tmp_path)) == 2 * 4


def test_a_transformers_attention_is_stored_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = StudentSpec(family="vit", knobs={"depth": 4})
    network = students.build(spec, in_channels=1, num_classes=3, data_size=8)
    teacher = Model("vit", network, TEACHER.preprocess).freeze()
    need = frozenset({"attention"})
    ask(opened(tmp_path, teacher), need=need)
    reported = ask(opened(tmp_path, teacher), need=need)
    assert len(reported.attention) == 4
    torch.testing.assert_close(reported.attention, teacher.features(view_of(ROWS, 1)).attention)


def test_the_next_process_evaluates_three_samples_a_file(tmp_path: Path) -> None:
    probe, check = 1, 3
    assert asked_of(tmp_path) == probe + len(IMAGES) + check
    assert asked_of(tmp_path) == check
    cache = opened(tmp_path)
    ask(cache)
    with counted(TEACHER) as sizes:
        ask(cache)
    assert sizes == []


@pytest.mark.parametrize(("method", "groups"), [("kd", 1), ("fitnet", 2), ("grad_cam", 3)])
def test_a_training_is_the_same_bit_for_bit_with_cold_warm_or_no_disk(
    tmp_path: Path, method: str, groups: int
) -> None:
    data, spec = toy_data(), TrainSpec(epochs=3, batch_size=16, mix="mixup")

    def trained(outputs: TeacherOutputs) -> tuple[list[float], dict[str, torch.Tensor]]:
        student = tiny_model(seed=1)
        torch.manual_seed(0)
        distiller = distiller_for(DistillSpec(method=method), student, TEACHER)
        session = Session(
            data=data, spec=spec, seed=0, view_seed=5, device=CPU, teachers=(outputs,)
        )
        epochs = train(student, distiller, session)
        return [epoch.losses["loss"] for epoch in epochs], student.state_dict()

    plain = trained(TeacherOutputs(TEACHER, FEED, view_seed=5))
    for outputs in (opened(tmp_path), opened(tmp_path)):
        losses, weights = trained(outputs)
        assert losses == plain[0]
        assert all(torch.equal(weights[name], value) for name, value in plain[1].items())
    assert len(files(tmp_path)) == 3 * groups


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _take_another_views(path: Path) -> None:
    shutil.copyfile(path.with_name(path.name.replace("0001", "0002")), path)


def _write_without_a_word(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        (_truncate, "Error"),
        (_flip_one_bit, "checksum"),
        (_take_another_views, "its key is"),
        (_write_without_a_word, "its key is None"),
        (lambda path: path.write_bytes(b""), "Error"),
    ],
)
def test_a_damaged_or_foreign_file_is_made_again_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage, reported: str
) -> None:
    first = opened(tmp_path)
    wanted = ask(first)
    ask(first, 2)
    path = files(tmp_path)[0]
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert_same(ask(opened(tmp_path)), wanted)
    (line,) = caplog.messages
    assert str(path) in line
    assert reported in line
    assert asked_of(tmp_path) == 3


def test_a_file_that_the_teacher_contradicts_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the code behind the same key has changed: all that can be known is what it says."""
    monkeypatch.setattr("kdsearch.training.teacher_cache.outputs.key_of", lambda *_, **__: "one")
    other = tiny_model(seed=1).freeze()
    ask(opened(tmp_path, other))
    assert_same(ask(opened(tmp_path)), ask(TeacherOutputs(TEACHER, FEED, view_seed=5)))
    assert "the teacher's outputs differ" in caplog.text
    assert len(caplog.messages) == 1


def test_the_folder_depends_on_all_that_decides_the_bits(tmp_path: Path) -> None:
    tuned = tiny_model().freeze()
    tuned.network.module[7].bias[0] += 1e-6
    wider = Preprocess(mean=(0.35,), std=(0.31,), resolution=8, channels=1)
    ask(opened(tmp_path))
    ask(opened(tmp_path, tuned))
    ask(opened(tmp_path, Model("tiny", TEACHER.network, wider).freeze()))
    ask(opened(tmp_path, view_seed=6))
    disk = Disk(cache_dir=tmp_path, data_key="others")
    ask(TeacherOutputs(TEACHER, FEED, view_seed=5, disk=disk))
    few = TeacherOutputs(
        TEACHER,
        Feed(IMAGES.take(slice(95)), CPU),
        view_seed=5,
        disk=Disk(cache_dir=tmp_path, data_key="toy"),
    )
    rows_of(few, view_of(ROWS, 1), ROWS, 1, need=LOGITS, augment=PLAIN)
    assert len(list((tmp_path / "teacher").iterdir())) == 6
    renamed = Model("another name", tiny_model().freeze().network, TEACHER.preprocess)
    assert asked_of(tmp_path, renamed) == 3


def test_the_pixels_of_a_view_are_those_of_this_version() -> None:
    """Where this fails on purpose, raise VIEWS_VERSION and put the new digest beside it."""
    shown = images(40, channels=3, size=16)
    digest = blake2b(digest_size=8)
    for recipe in RECIPES:
        recipe = replace(recipe, pad=2, flip=True)
        pixels = augmented(shown, torch.arange(40), 3, seed=1, augment=recipe)
        digest.update(pixels.numpy())
    assert (VIEWS_VERSION, digest.hexdigest()) == (1, "8da461a68ab150d8")


def test_many_at_once_end_in_one_sound_file(tmp_path: Path) -> None:
    caches = [opened(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, caches))
    for answer in answers:
        assert_same(answer, answers[0])
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"]
    assert asked_of(tmp_path) == 3


def test_processes_that_need_the_same_view_make_it_once(tmp_path: Path) -> None:
    caches = [opened(tmp_path) for _ in range(4)]
    with counted(TEACHER) as sizes, ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, caches))
    assert [sum(size == 3 for size in sizes), sizes.count(1)] == [4, 1]
    assert sum(sizes) == 1 + len(IMAGES) + 4 * 3


HOLD = """
import sys, time
from pathlib import Path
from test_teacher_cache_disk import opened
from toy_cache import PLAIN
from kdsearch.training.teacher_cache.parts import View
with opened(Path(sys.argv[1]))._files.making(View(PLAIN, 1)):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.mark.usefixtures("no_seed_offset")
def test_a_killed_maker_of_a_view_leaves_it_to_the_next(tmp_path: Path) -> None:
    line = [sys.executable, "-c", HOLD, str(tmp_path)]
    with (
        subprocess.Popen(
            line, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
        ) as holder,
        ThreadPoolExecutor(1) as pool,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        requested = pool.submit(ask, opened(tmp_path))
        with pytest.raises(TimeoutError):
            requested.result(timeout=0.3)
        assert files(tmp_path) == []
        holder.kill()
        requested.result(timeout=20)
    assert len(files(tmp_path)) == 1


def test_threads_share_one_forward_pass(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    with counted(TEACHER) as sizes, ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, [cache] * 8))
    assert sum(sizes) == 1 + len(IMAGES) + 3


def test_beyond_the_disks_bytes_views_stay_in_memory_then_live(tmp_path: Path) -> None:
    cache = opened(tmp_path, disk_bytes=ONE_FILE, max_bytes=VIEW_BYTES)
    for view in (1, 2, 3):
        ask(cache, view)
    assert [path.name for path in files(tmp_path)] == ["0001-answers.safetensors"]
    with counted(TEACHER) as sizes:
        for view in (1, 2, 3):
            ask(cache, view)
    assert sizes == [len(ROWS)]


def test_large_parts_leave_half_of_the_disk_free(tmp_path: Path) -> None:
    needed = VIEW_BYTES + STAGE_BYTES + HEADERS
    for spare, fits in ((0, True), (-1, False)):
        folder = tmp_path / str(spare)
        ask(opened(folder, disk_bytes=2 * (needed + spare)), need=STAGES)
        assert (len(files(folder)) == 2) is fits if fits else not files(folder)


def test_unused_files_are_deleted_the_oldest_first(tmp_path: Path) -> None:
    before = opened(tmp_path)
    for view in (1, 2, 3):
        ask(before, view)
    for age, path in zip((20, 30, 10), files(tmp_path), strict=True):
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    (tmp_path / "teacher" / "left.1-1.part").write_bytes(bytes(100))
    os.utime(tmp_path / "teacher" / "left.1-1.part", (0, 0))
    now = opened(
        tmp_path, disk_bytes=sum(path.stat().st_size for path in files(tmp_path)) + HEADERS
    )
    ask(now, 1)  # used: it stays
    ask(now, 1, augment=MIXED)
    names = [f"{path.parent.name.rpartition('-')[0]} {path.name[:4]}" for path in files(tmp_path)]
    assert names == ["plain-cutmix 0001", "plain-none 0001", "plain-none 0003"]


def test_a_disk_that_refuses_is_logged_once_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = opened(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        answers = [ask(cache, view) for view in (1, 2)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    plain = TeacherOutputs(TEACHER, FEED, view_seed=5)
    for view, answer in enumerate(answers, start=1):
        assert_same(answer, ask(plain, view))
    (line,) = caplog.messages
    assert "no longer written to disk" in line
    assert files(tmp_path) == []


def test_no_more_than_a_quarter_of_the_free_disk_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, count in ((4 * ONE_FILE, 1), (4 * ONE_FILE - 1, 0)):
        folder = tmp_path / str(free)
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        ask(opened(folder))
        assert len(files(folder)) == count


def test_the_seconds_are_those_of_teacher_evaluation(tmp_path: Path) -> None:
    cold, warm = opened(tmp_path), opened(tmp_path)
    assert cold.seconds == 0
    for cache in (cold, warm):
        for view in range(1, 6):
            ask(cache, view, need=EVERYTHING)
    assert 0 < warm.seconds < cold.seconds
    spent = warm.seconds
    ask(warm, 1, need=EVERYTHING)
    assert warm.seconds == spent


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("max_bytes", [2 * VIEW_BYTES, VIEW_BYTES], ids=["resident", "mapped"])
def test_on_a_gpu_stored_rows_are_the_live_teachers(tmp_path: Path, max_bytes: int) -> None:
    teacher, feed = tiny_model().freeze().cuda(), Feed(IMAGES, torch.device("cuda"))
    index = ROWS.cuda()
    for _ in ("cold", "warm"):
        disk = Disk(cache_dir=tmp_path, data_key="toy")
        cache = TeacherOutputs(teacher, feed, view_seed=5, max_bytes=max_bytes, disk=disk)
        for view in (1, 2):
            seen = view_of(ROWS, view).cuda()
            reported = rows_of(
                cache, torch.zeros_like(seen), index, view, need=LOGITS, augment=PLAIN
            )
            assert reported.logits.is_cuda
            torch.testing.assert_close(reported.logits, teacher(seen), rtol=1e-2, atol=1e-2)
    assert len(files(tmp_path)) == 2
