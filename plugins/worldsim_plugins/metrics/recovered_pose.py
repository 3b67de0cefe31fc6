"""The motion of a camera from two pictures alone.

Corners (Shi and Tomasi 1994) are followed by pyramids of Lucas-Kanade (Bouguet 2000) there and back, and the
essential matrix E = [t]_x R is fitted to five of them at a time (Nister 2004) by RANSAC, whose generator
OpenCV seeds alike each time; the motion is then moved to the least sum of log(1 + (distance / OFF)^2) of
Sampson's distances, which a few corners on what moves by itself do not sway. t has no length. By OpenCV,
which is optional and imported where it is first used.

Measured on ``scenes`` with walls of wavelength 1.5, turns of 3 degrees: median error of rotation 0.8 degrees
with 64 pixels, 0.5 with 128. Smooth pictures have few corners: wavelength 3 gives 2.3.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from worldsim import NotMeasurable
from worldsim_kernels.multiview import fundamental, sampson_distance
from worldsim_plugins.metrics.view_pairs import Motion

CORNERS, FEWEST = 200, 12
"""Most corners of a picture, and how many must be followed: five always fit."""
SMALLEST = 256
"""Pictures are enlarged until their sides are this long: corners and slopes are found on whole pixels."""
BACK = 0.25
"""Pixels from where it began that a corner may end after being followed there and back."""
OFF = 0.1
"""Pixels off its epipolar line that a corner is, as it is followed."""
AGREES = 2.5 * OFF
"""Up to which RANSAC takes a corner to agree."""
ITERATIONS = 50


def require_opencv() -> None:
    """Raises NotMeasurable where OpenCV is not installed."""
    if find_spec("cv2") is None:
        raise NotMeasurable("a pose is recovered by OpenCV: pip install 'worldsim[vision]'")


def followed(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Places ``[match, (u, v)]`` of the corners of ``first`` ``[row, column]``, brightness in [0, 1], and
    where they are in ``second``."""
    import cv2

    factor = -(-SMALLEST // min(first.shape))
    one, two = (enlarged(picture, factor) for picture in (first, second))
    corners = cv2.goodFeaturesToTrack(one, CORNERS, qualityLevel=0.01, minDistance=2 * factor)
    if corners is None:
        return torch.empty(0, 2, dtype=torch.float64), torch.empty(0, 2, dtype=torch.float64)
    window = {"winSize": (7 * factor, 7 * factor), "maxLevel": 3}
    there, found, _ = cv2.calcOpticalFlowPyrLK(one, two, corners, None, **window)
    back, again, _ = cv2.calcOpticalFlowPyrLK(two, one, there, None, **window)
    apart = np.linalg.norm((back - corners).reshape(-1, 2), axis=1)
    kept = (found.ravel() == 1) & (again.ravel() == 1) & (apart < BACK * factor)
    # A pixel of the picture is a square of factor^2, whose middle is the pixel's.
    return tuple(
        torch.from_numpy((places.reshape(-1, 2)[kept].astype(np.float64) + 0.5) / factor - 0.5)
        for places in (corners, there)
    )


def enlarged(picture: Tensor, factor: int) -> np.ndarray:
    """As OpenCV wants it, ``factor`` times as large."""
    import cv2

    levels = (255 * picture.clamp(0, 1)).round().to(torch.uint8).numpy()
    return cv2.resize(levels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)


def recovered(first: Tensor, second: Tensor, intrinsics: Tensor) -> tuple[Motion, Tensor] | None:
    """The motion between two pictures ``[row, column]``, with a translation of length 1, and the median
    distance in pixels of what was followed from its epipolar line (Sampson). None where fewer than FEWEST
    corners can be followed, or no motion fits."""
    import cv2

    here, there = followed(first, second)
    if len(here) < FEWEST:
        return None
    pixels, camera = (here.numpy(), there.numpy()), intrinsics.numpy()
    essential, agrees = cv2.findEssentialMat(*pixels, camera, cv2.RANSAC, 0.999, AGREES)
    if essential is None or essential.shape != (3, 3):
        return None

    def in_front(essential: np.ndarray) -> Motion:
        """Of its four motions, the one that puts most points in front of both cameras."""
        _, rotation, translation, _ = cv2.recoverPose(essential, *pixels, camera, mask=agrees.copy())
        return Motion(torch.from_numpy(rotation), torch.from_numpy(translation[:, 0]))

    found = refined(in_front(essential), here, there, intrinsics)
    # It may have moved to where others are in front.
    motion = in_front(fundamental(torch.eye(3, dtype=torch.float64), *found).numpy())
    return motion, sampson_distance(fundamental(intrinsics, *motion), here, there).median()


def refined(start: Motion, here: Tensor, there: Tensor, intrinsics: Tensor) -> Motion:
    """The motion near ``start`` that fits the matches best: a turn, and a move of the unit translation along
    the sphere that it is on."""
    rotation, translation = (part.numpy() for part in start)
    sideways = np.linalg.svd(translation[None])[2][1:]

    def motion(x: np.ndarray) -> Motion:
        shift = translation + x[3:] @ sideways
        turn = Rotation.from_rotvec(x[:3]).as_matrix() @ rotation
        return Motion(torch.from_numpy(turn), torch.from_numpy(shift / np.linalg.norm(shift)))

    def off(x: np.ndarray) -> np.ndarray:
        return sampson_distance(fundamental(intrinsics, *motion(x)), here, there).numpy()

    return motion(least_squares(off, np.zeros(5), loss="cauchy", f_scale=OFF, max_nfev=ITERATIONS).x)
