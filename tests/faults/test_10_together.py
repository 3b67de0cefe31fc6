"""Trial 10: runs into one folder at once: each ends well, and together they keep what one alone keeps."""

import oracle
import pytest

pytestmark = pytest.mark.trial(10)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    calm = tmp_path_factory.mktemp("calm")
    oracle.run(oracle.SUITE, calm, check=True)
    return oracle.digest(calm)


@pytest.mark.parametrize("count", [2, 3])
def test_runs_share_a_folder(tmp_path, expected, count):
    out = tmp_path / "out"
    processes = [oracle.start(oracle.SUITE, out) for _ in range(count)]
    try:
        for process in processes:
            code, output, errors = oracle.finish(process, out)
            assert code == 0, errors or output
    finally:
        for process in processes:
            oracle.kill(process)
    assert oracle.digest(out) == expected
    oracle.sound(out)
    assert list(out.rglob("*.part")) == []
    assert oracle.left_behind(out, 5) == []
