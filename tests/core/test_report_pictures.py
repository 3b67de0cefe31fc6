"""Pictures in the report: mosaics of frames, and fields over time, from what is kept."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from worldsim.report.pictures import pictures


def kept(shape, axes, frames, trajectories=40, low=0.0):
    generator = np.random.default_rng(0)
    truth = generator.uniform(low, 1, (trajectories, frames, *shape))
    state = 2 * truth[:, None].repeat(3, 1)  # brighter, and out of the truth's range
    dims = ("trajectory", "time", *axes)
    data = xr.Dataset({
        "truth": (dims, truth),
        "state": (("trajectory", "draw", *dims[1:]), state),
    })  # fmt: skip
    return {"flow": data.assign_coords(time=np.arange(frames, dtype=float))}, truth


def drawn(panel):
    return {plot.layout["title"]["text"]: plot for plot in panel.plots}


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 6), ("row", "component")), ((5, 6, 1), ("row", "column", "component"))]
)
def test_films_are_shown_frame_by_frame_the_truth_first(shape, axes):
    data, truth = kept(shape, axes, frames=20)
    (panel,) = pictures(data, axes, "s")
    assert [*drawn(panel)] == ["truth", "flow"]
    z = np.array(drawn(panel)["truth"].data[0]["z"], dtype=float)
    assert z.shape == (4 * 6 - 1, 8 * 7 - 1)  # a gap of one pixel between frames
    assert np.isnan(z[5]).all()
    np.testing.assert_allclose(z[:5, :6], truth[0, 0].reshape(5, 6), atol=6e-4)
    np.testing.assert_allclose(z[-5:, -6:], truth[3, -1].reshape(5, 6), atol=6e-4)
    for plot in panel.plots:
        go.Figure(data=plot.data, layout=plot.layout)
        assert plot.data[0]["zmax"] == truth.max()


def test_single_frames_are_shown_of_many_trajectories():
    data, truth = kept((4, 4, 1), ("row", "column", "component"), frames=2, trajectories=40)
    (panel,) = pictures(data, ("row", "column", "component"), "1")
    z = np.array(drawn(panel)["flow"].data[0]["z"], dtype=float)
    assert z.shape == (4 * 5 - 1, 8 * 5 - 1)
    np.testing.assert_allclose(z[:4, 5:9], 2 * truth[1, 1, ..., 0], atol=6e-4)
    few, _ = kept((4, 4, 1), ("row", "column", "component"), frames=2, trajectories=3)
    assert np.shape(drawn(pictures(few, ("row", "column", "component"), "1")[0])["truth"].data[0]["z"]) == (
        14,
        4,
    )


def test_a_field_on_a_line_is_shown_over_time():
    data, truth = kept((16, 1), ("x", "component"), frames=90, low=-1.0)
    (panel,) = pictures(data, ("x", "component"), "s")
    trace = drawn(panel)["truth"].data[0]
    assert np.shape(trace["z"]) == (60, 16)
    assert (trace["y"][0], trace["y"][-1]) == (0, 89)
    assert trace["colorscale"] == "RdBu"
    np.testing.assert_allclose(trace["z"][-1], truth[0, -1, :, 0], atol=6e-4)
    go.Figure(data=panel.plots[0].data, layout=panel.plots[0].layout)


def test_what_is_no_picture_has_none():
    data, _ = kept((3, 2), ("point", "component"), frames=5)
    assert pictures(data, ("point", "component"), "s") == []
