"""Trial 21: a folder that cannot be written is refused at once; one that goes away costs its cases."""

import os
import shutil
import subprocess

import oracle
import pytest

pytestmark = pytest.mark.trial(21)


def refused(out):
    """What a run into ``out`` says, which ends with 3 before it has begun a case."""
    ended = oracle.run(oracle.SUITE, out, "--no-report")
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert str(out) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "worker" not in ended.stdout
    return ended.stderr


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


def test_a_file_system_that_is_read_only(tmp_path):
    if os.geteuid() or not mount("-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path):
        pytest.skip("no file system can be mounted here")
    try:
        assert "choose another folder with --out" in refused(tmp_path)
        assert "choose another folder with --out" in refused(tmp_path / "new")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_system_without_room(tmp_path):
    """No room at all, as where a quota is used up."""
    if os.geteuid() or not mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", tmp_path):
        pytest.skip("no file system can be mounted here")
    try:
        (tmp_path / "full").write_bytes(bytes(4096))
        assert "free some space there" in refused(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_of_somebody_else(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the superuser may write everywhere")
    (tmp_path / "out").mkdir(mode=0o500)
    assert "you may not write there" in refused(tmp_path / "out")


def test_a_file_in_its_place_or_a_link_to_nowhere(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert "a file stands where a folder is needed" in refused(tmp_path / "file" / "out")
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "away")
    refused(tmp_path / "link")


def test_a_name_that_is_too_long(tmp_path):
    assert "choose a folder with a shorter path" in refused(tmp_path / ("x" * 256))


def test_a_folder_that_goes_away_is_no_success(tmp_path):
    """It is deleted while cases run: either they are kept in a new one, or the run does not end with 0."""
    calm, out = tmp_path / "calm", tmp_path / "out"
    oracle.run(oracle.SUITE, calm, "--no-report", check=True)
    process = oracle.start(oracle.SUITE, out, "--no-report")
    oracle.come_to(process, lambda: len(list(out.glob("runs/*/*.zip"))) >= 2)
    out.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere")
    _, errors = process.communicate(timeout=oracle.PATIENCE)
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert oracle.left_behind(out, 5) == []
    oracle.run(oracle.SUITE, out, "--no-report", check=True)
    assert oracle.digest(out) == oracle.digest(calm)
    oracle.sound(out)
