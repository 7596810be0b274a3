"""Procedural brain phantoms: one 3-D anatomy per subject, evaluated at any slice position.

Axes as in the OASIS slices: columns run from the back of the head to its front (x), rows from side
to side (y), slices upwards (z). Lengths are millimetres from the head's centre; `side` is |y|, so
whatever depends on it is symmetric, and only the named random fields differ between left and right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from brainslices.errors import InputError

__all__ = ["phantom_attributes", "phantom_slices"]

FRAME_MM = 256.0  # the public release's frame: 256 pixels of 1 mm
SLAB_MM = 31.0  # its 32 slices, from the thalamus to the roof of the lateral ventricles
BOX_MM = (88.0, 104.0)  # half height and half width: contain the largest head
COARSEST_PIXEL_MM = 2.0  # sulci are 2 mm wide: coarser frames are averaged from finer ones
SMALLEST_SIDE = 16  # pixels; smaller frames show no anatomy

CSF, GREY, WHITE = 34.0, 120.0, 220.0  # modes of the foreground of skull-stripped OASIS slices
BIAS = 0.03  # the residual bias field of corrected scans
POINT_SPREAD_MM = 0.7  # blurs edges as much as in the real slices
FOLD_MM = 14.5  # wavelength of the folding field: one sulcus per half wave
OWN_FOLD_MM, OWN_FOLDS = 18.0, 0.6  # the asymmetric part: wavelength and weight
SULCUS_MM, SULCUS_VARIATION_MM = 17.0, 3.0  # depth of a sulcus
INSULA_MM = 9.0  # sulci leaving the Sylvian fissure are shallower by this
CORE_X, CORE_SIDE = (-45, 38), 31  # white core of a hemisphere, from which the gyri radiate
BLEND_MM = 4.0  # over which adjacent parts of a structure blend
EDGE_MM, WARP_MM = 0.6, 1.5  # irregularity of the outline, and of the inside

# Radius of the outline (mm) every 15 degrees from forehead to occiput. The lowest slice has the
# notch between frontal and temporal lobe; the highest is shorter behind.
OUTLINE_LOW = (87, 87, 83, 73, 66, 67, 70, 71, 74, 78, 82, 86, 87)
OUTLINE_HIGH = (86, 84, 78, 72, 69, 69, 70, 71, 73, 76, 78, 80, 80)

# Structures of one hemisphere as chains of tapering tubes, rows of (x, side, z, radius), at their
# Talairach coordinates.
LATERAL_VENTRICLE = (  # frontal horn; body, atrium and root of the temporal horn; roof
    ((44, 19, 4, 2.5), (36, 15, 12, 5), (14, 8, 19, 6.5)),
    ((14, 8, 19, 6.5), (-6, 9, 23, 6.5), (-25, 19, 25, 8), (-38, 30, 17, 9), (-28, 34, 0, 7)),
    ((30, 14, 20, 3.5), (10, 13, 29, 5), (-10, 14, 30, 5.5), (-28, 20, 28, 5)),
)
THIRD_VENTRICLE = (((20, 0, -6, 4), (-6, 0, 2, 3), (-16, 0, 8, 1.5)),)
CISTERN = (((-24, 0, -8, 9), (-27, 0, 4, 6), (-25, 0, 11, 1)), ((-22, 0, -6, 4), (-20, 20, -6, 4)))
SYLVIAN_FISSURE = (  # its opening, then the pocket over the insula
    ((39, 66, -6, 3), (33, 47, 0, 2), (28, 43, 8, 1), (22, 45, 18, 0)),
    ((28, 42, 3, 1.5), (8, 44, 5, 1.5), (-14, 48, 9, 0.3), (-22, 53, 17, 0)),
)
THALAMUS = (((5, 9, -2, 7), (-6, 12, 4, 10), (-13, 14, 11, 7)),)
PALLIDUM = (((19, 20, -3, 6), (5, 23, 0, 6)),)
PUTAMEN = (((30, 25, 0, 8), (14, 30, 3, 8), (-6, 33, 3, 4)), ((15, 29, 3, 8), (12, 29, 12, 5)))
CAUDATE = (((32, 15, -2, 7), (27, 20, 9, 7.5), (10, 20, 21, 5.5), (-14, 25, 27, 3)),)
NUCLEI = ((THALAMUS, 0.5), (PALLIDUM, 0.7), (PUTAMEN, 0.42), (CAUDATE, 0.25))  # fraction of white


@dataclass(frozen=True)
class _Waves:
    """Smooth random field of unit variance: a sum of cosines of random direction and phase."""

    vectors: np.ndarray
    phases: np.ndarray

    @classmethod
    def sample(cls, rng: np.random.Generator, wavelength_mm: float, count: int) -> "_Waves":
        directions = rng.normal(size=(count, 3))
        lengths = wavelength_mm * rng.uniform(0.8, 1.3, size=(count, 1))
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        phases = rng.uniform(0, 2 * np.pi, size=(count, 1))
        return cls((2 * np.pi * unit / lengths).astype("float32"), phases.astype("float32"))

    def __call__(self, x, y, z):
        points = np.stack([x.ravel(), y.ravel(), z.ravel()])
        weights = np.full(len(self.phases), np.sqrt(2 / len(self.phases)), np.float32)
        return (weights @ np.cos(self.vectors @ points + self.phases)).reshape(x.shape)


@lru_cache(maxsize=8)
def _sample_subject(seed, subject):
    """Sample an anatomy; one latent `age` widens ventricles and sulci and thins the cortex."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, subject]))
    age, brightness = rng.beta(1.2, 1.2), rng.normal(1, 0.05)
    return SimpleNamespace(
        age=age,
        scale=rng.normal(1, 0.025, size=2).clip(0.94, 1.05),
        shift=rng.normal(0, 1, size=2).clip(-2, 2),
        yaw=np.deg2rad(rng.normal(0, 1.2)),
        pitch=rng.normal(0, 0.04),
        roll=rng.normal(0, 0.03),
        ventricles=0.6 + 0.8 * age + rng.normal(0, 0.05),
        sulcus_mm=0.25 + 0.85 * age,
        cortex_mm=3.4 - 0.5 * age,
        grey=GREY * brightness * rng.normal(1, 0.06),
        white=min(WHITE * brightness, 240),
        noise=rng.uniform(3, 6),
        folds=_Waves.sample(rng, FOLD_MM, 40),
        own_folds=_Waves.sample(rng, OWN_FOLD_MM, 32),
        openness=_Waves.sample(rng, 40, 12),
        edge=_Waves.sample(rng, 25, 12),
        warp=(_Waves.sample(rng, 45, 8), _Waves.sample(rng, 45, 8)),
        bias=_Waves.sample(rng, 220, 6),
    )


def _head_coordinates(head, position, pixel_mm, shape):
    """Pixel centres of the head box in the subject's axes."""
    rows, cols = ((np.arange(n) - (n - 1) / 2) * pixel_mm for n in shape)
    across, along = rows[:, None] - head.shift[0], cols[None, :] - head.shift[1]
    cos, sin = np.cos(head.yaw), np.sin(head.yaw)
    x = (along * cos + across * sin) / head.scale[0]
    y = (across * cos - along * sin) / head.scale[1]
    z = position * SLAB_MM + head.pitch * x + head.roll * y
    return np.float32(x), np.float32(y), np.float32(z)


def _outline_depth(head, x, y, z):
    """Depth below the brain's outer surface, negative outside."""
    degrees = np.arange(181)
    knots = np.linspace(0, 180, len(OUTLINE_LOW))
    angle = np.rad2deg(np.arctan2(np.abs(y), x))
    low, high = (
        np.interp(angle, degrees, ndimage.gaussian_filter1d(np.interp(degrees, knots, radii), 9))
        for radii in (OUTLINE_LOW, OUTLINE_HIGH)
    )
    position = np.clip(z / SLAB_MM, 0, 1)
    radius = low + (high - low) * position + EDGE_MM * head.edge(x, y, z)
    return np.float32(radius - np.hypot(x, y))


def _tube(chains, x, side, z, swelling=1.0):
    """Signed distance to chains of tubes, negative inside."""
    distances = []
    for chain in chains:
        for start, end in zip(chain[:-1], chain[1:], strict=True):
            start, end = np.float32(start), np.float32(end)
            axis = (end - start)[:3]
            offset = [p - s for p, s in zip((x, side, z), start[:3], strict=True)]
            along = sum(o * a for o, a in zip(offset, axis, strict=True)) / (axis @ axis)
            along = np.clip(along, 0, 1)
            square = sum((o - along * a) ** 2 for o, a in zip(offset, axis, strict=True))
            distances.append(np.sqrt(square) - swelling * (start[3] + along * (end[3] - start[3])))
    return reduce(_union, distances)


def _union(a, b):
    """Smooth minimum of two distances, which blends adjacent parts."""
    overlap = np.maximum(0, BLEND_MM - np.abs(a - b))
    return np.minimum(a, b) - overlap**2 / (4 * BLEND_MM)


def _fissure(x, side, z):
    """Distance to the interhemispheric fissure, in front of and behind the corpus callosum."""
    position = np.clip(z / SLAB_MM, -0.2, 1.2)
    front, back = 49 - 24 * position**2, -20 - 8 * (position - 0.5) ** 2
    return np.hypot(side, 2 * np.maximum(0, np.minimum(front - x, x - back)))


def _fold_distance(head, x, y, z, near, pixel_mm):
    """Distance to the sulci: the zero set of a random field stretched along the gyri."""
    side = np.abs(y)
    core_x = np.clip(x, *CORE_X)
    radius = np.sqrt((x - core_x) ** 2 + (side - CORE_SIDE) ** 2 + 200)
    pull = 0.3 + 22 / radius
    u, v = core_x + (x - core_x) * pull, CORE_SIDE + (side - CORE_SIDE) * pull
    field = np.zeros(near.shape, np.float32)
    field[near] = head.folds(u, v, z) + OWN_FOLDS * head.own_folds(x, y, z)
    slope = np.hypot(*np.gradient(field, pixel_mm))
    return (np.abs(field) / np.hypot(slope, 0.12))[near]  # 0.12: sulci parallel to the slice


def _cortex_depth(head, x, y, z, outline, near, pixel_mm):
    """Depth into the cortex below the fluid around it, negative in that fluid."""
    side = np.abs(y)
    openness = head.openness(x, side, z)
    width = head.sulcus_mm * (1 + 0.6 * openness)
    sylvian = _tube(SYLVIAN_FISSURE, x, side, z)
    surface = np.minimum(_fissure(x, side, z), outline + width + 0.3)
    below = np.minimum(surface, sylvian + INSULA_MM)
    ends = np.maximum(0, below - SULCUS_MM - SULCUS_VARIATION_MM * openness)
    sulci = np.hypot(_fold_distance(head, x, y, z, near, pixel_mm), ends)
    narrowing = 0.13 * np.minimum(below, 12) - 1.1
    return np.minimum(np.minimum(surface, sylvian), sulci + narrowing) - width


def _inside_fraction(distance, softness):
    """Fraction of a pixel inside a structure, from its signed distance."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _tissue(head, x, y, z, outline, near, pixel_mm):
    """T1-weighted intensities without scanner artefacts."""
    x, y = (p + WARP_MM * waves(x, y, z) for p, waves in zip((x, y), head.warp, strict=True))
    side, soft = np.abs(y), max(pixel_mm, 1.2)
    cortex = _cortex_depth(head, x, y, z, outline, near, pixel_mm)
    white = 1 - _inside_fraction(cortex - head.cortex_mm, 2 * soft)
    for chains, level in NUCLEI:
        white += (level - white) * _inside_fraction(_tube(chains, x, side, z), 3 * soft)
    image = head.grey + (head.white - head.grey) * white
    septum = 1 - side
    lateral = np.maximum(_tube(LATERAL_VENTRICLE, x, side, z, head.ventricles), septum)
    third = _tube(THIRD_VENTRICLE, x, side, z, head.ventricles)
    fluid = reduce(np.minimum, (cortex, lateral, third, _tube(CISTERN, x, side, z)))
    return image + (CSF - image) * _inside_fraction(fluid, soft)


def _scan(head, rng, tissue, bias, inside, pixel_mm):
    """Bias field, point spread and Rician noise of a magnitude image; zero outside the brain."""
    signal = ndimage.gaussian_filter(tissue * (1 + BIAS * bias), POINT_SPREAD_MM / pixel_mm)
    real, imaginary = head.noise * rng.standard_normal((2, *signal.shape), np.float32)
    levels = np.clip(np.rint(np.hypot(signal + real, imaginary)), 1, 255)
    return np.where(inside, levels, 0).astype(np.uint8)


def _render_slice(head, rng, position, size):
    scale = FRAME_MM / min(size)
    finer = int(np.ceil(scale / COARSEST_PIXEL_MM))
    pixel_mm = scale / finer
    halves = (int(np.ceil(mm / scale)) for mm in BOX_MM)
    box = [min(n, 2 * half + n % 2) for n, half in zip(size, halves, strict=True)]
    x, y, z = _head_coordinates(head, position, pixel_mm, [n * finer for n in box])
    outline = _outline_depth(head, x, y, z)
    near = outline > -3 * pixel_mm  # margin for the gradient of the folds and the point spread
    tissue = np.zeros_like(outline)
    tissue[near] = _tissue(head, *(p[near] for p in (x, y, z, outline)), near, pixel_mm)
    maps = (tissue, head.bias(x, y, z), outline > 0)
    tissue, bias, inside = (m.reshape(box[0], finer, box[1], finer).mean((1, 3)) for m in maps)
    image = np.zeros(size, np.uint8)
    top, left = ((n - b) // 2 for n, b in zip(size, box, strict=True))
    window = image[top : top + box[0], left : left + box[1]]
    window[:] = _scan(head, rng, tissue, bias, inside > 0.5, scale)
    return image


def phantom_attributes(subject: int, seed: int = 0) -> dict[str, str]:
    """Return the age and sex of a phantom, for the table of subjects.

    The age in years is the latent age that widens ventricles and sulci. The sex follows the size of
    the head, with an overlap between the two.

    Args:
        subject: which brain, 0 or more.
        seed: seed of the population, 0 or more.
    """
    head = _sample_subject(int(seed), int(subject))
    noise = np.random.default_rng([seed, subject]).normal(0, 0.01)
    sex = "M" if head.scale.mean() + noise > 1 else "F"
    return {"age": f"{20 + 70 * head.age:.0f}", "sex": sex}


def phantom_slices(
    subject: int,
    positions: Sequence[float] | np.ndarray,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
) -> np.ndarray:
    """Render axial, skull-stripped, T1-like slices of one procedural brain.

    A slice depends only on `seed`, `subject`, its own position and `size`. The head covers the same
    fraction of the frame's shorter side at every size.

    Args:
        subject: which brain, 0 or more.
        positions: slice positions, shape (n,), in [0, 1]: 0 the lowest, 1 the highest.
        size: (rows, cols) of the frame, in pixels.
        seed: seed of the population, 0 or more.

    Returns:
        uint8 array of shape (n, rows, cols) in [0, 255]; 0 is the background and never the brain.

    Raises:
        InputError: if a position is outside [0, 1], a side is too short, or a number is negative.
    """
    positions = np.atleast_1d(np.asarray(positions, np.float64))
    outside = positions[~((positions >= 0) & (positions <= 1))]
    if positions.ndim != 1 or outside.size:
        raise InputError(
            f"`positions` must be a list of numbers in [0, 1]. Received: {outside.tolist()} "
            f"among positions of shape {positions.shape}."
        )
    if min(size) < SMALLEST_SIDE:
        raise InputError(
            f"`size` must be at least {SMALLEST_SIDE} per side. Received: size={size}."
        )
    if min(subject, seed) < 0:
        raise InputError(
            f"`subject` and `seed` must be 0 or more. Received: subject={subject}, seed={seed}."
        )
    head = _sample_subject(int(seed), int(subject))
    slices = np.zeros((len(positions), *size), np.uint8)
    for image, position in zip(slices, positions, strict=True):
        key = [int(seed), int(subject), int(position * 2**32)]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        image[:] = _render_slice(head, rng, position, tuple(size))
    return slices
