"""Procedural brain phantoms: one 3-D anatomy a subject, evaluated at any height.

Axes as in the OASIS slices: columns run from the back of the head to its front (x), rows from side
to side (y), slices upwards (z). Lengths are millimetres from the head's centre; `side` is |y|, so
whatever is drawn from it is mirrored, and only the named random fields tell left from right.
"""

from dataclasses import dataclass
from functools import lru_cache, reduce
from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from brainslices.errors import InputError

__all__ = ["phantom_slices"]

FRAME_MM = 256.0  # the public release's frame: 256 pixels of 1 mm
SLAB_MM = 31.0  # its 32 slices, from the thalamus to the roof of the lateral ventricles
BOX_MM = (88.0, 104.0)  # half height and half width: hold the largest head drawn
COARSEST_PIXEL_MM = 2.0  # sulci are about 2 mm wide: coarser frames are averaged from finer ones
SMALLEST_SIDE = 16  # pixels; below it no anatomy is left

CSF, GREY, WHITE = 34.0, 120.0, 220.0  # modes of the foreground of skull-stripped OASIS slices
BIAS = 0.03  # the scanner's uneven field, as corrected data still show it
POINT_SPREAD_MM = 0.7  # smooths edges as much as the real slices' own
FOLD_MM = 14.5  # wavelength of the folding field: a sulcus every half of it
OWN_FOLD_MM, OWN_FOLDS = 18.0, 0.6  # the part not mirrored: wavelength and weight
SULCUS_MM, SULCUS_VARIATION_MM = 17.0, 3.0  # depth a sulcus reaches inwards
INSULA_MM = 9.0  # sulci leaving the Sylvian fissure are shallower by this
CORE_X, CORE_SIDE = (-45, 38), 31  # a hemisphere's white core, from which the gyri radiate
EDGE_MM, WARP_MM = 0.6, 1.5  # irregularity of the outline, and of everything inside

# Radius of the outline (mm) every 15 degrees from forehead to occiput. The lowest slice has the
# notch between frontal and temporal lobe; the highest is shorter behind.
OUTLINE_LOW = (87, 87, 83, 73, 66, 67, 70, 71, 74, 78, 82, 86, 87)
OUTLINE_HIGH = (86, 84, 78, 72, 69, 69, 70, 71, 73, 76, 78, 80, 80)

# Structures of one hemisphere as chains of tapering tubes, rows of (x, side, z, radius), placed as
# they lie in Talairach space.
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
NUCLEI = ((THALAMUS, 0.5), (PALLIDUM, 0.7), (PUTAMEN, 0.42), (CAUDATE, 0.25))  # share of white


@dataclass(frozen=True)
class _Waves:
    """Smooth random field of unit variance: a sum of cosines of random direction and phase."""

    vectors: np.ndarray
    phases: np.ndarray

    @classmethod
    def draw(cls, rng, wavelength_mm, count):
        directions = rng.normal(size=(count, 3))
        lengths = wavelength_mm * rng.uniform(0.8, 1.3, size=(count, 1))
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        phases = rng.uniform(0, 2 * np.pi, size=(count, 1))
        return cls(np.float32(2 * np.pi * unit / lengths), np.float32(phases))

    def __call__(self, x, y, z):
        points = np.stack([x.ravel(), y.ravel(), z.ravel()])
        weights = np.full(len(self.phases), np.sqrt(2 / len(self.phases)), np.float32)
        return (weights @ np.cos(self.vectors @ points + self.phases)).reshape(x.shape)


@lru_cache(maxsize=8)
def _draw_subject(seed, subject):
    """Draws an anatomy; one latent `age` widens ventricles and sulci and thins the cortex."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, subject]))
    age, brightness = rng.beta(1.2, 1.2), rng.normal(1, 0.05)
    return SimpleNamespace(
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
        folds=_Waves.draw(rng, FOLD_MM, 40),
        own_folds=_Waves.draw(rng, OWN_FOLD_MM, 32),
        openness=_Waves.draw(rng, 40, 12),
        edge=_Waves.draw(rng, 25, 12),
        warp=(_Waves.draw(rng, 45, 8), _Waves.draw(rng, 45, 8)),
        bias=_Waves.draw(rng, 220, 6),
    )


def _head_coordinates(head, position, pixel_mm, shape):
    """Pixel centres of the head box in the subject's own axes."""
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
    height = np.clip(z / SLAB_MM, 0, 1)
    radius = low + (high - low) * height + EDGE_MM * head.edge(x, y, z)
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


def _union(a, b, blend_mm=4.0):
    """Smooth minimum of two distances, so that parts grow into each other."""
    overlap = np.maximum(0, blend_mm - np.abs(a - b))
    return np.minimum(a, b) - overlap**2 / (4 * blend_mm)


def _fissure(x, side, z):
    """Distance to the fissure between the hemispheres, before and behind the corpus callosum."""
    height = np.clip(z / SLAB_MM, -0.2, 1.2)
    front, back = 49 - 24 * height**2, -20 - 8 * (height - 0.5) ** 2
    return np.hypot(side, 2 * np.maximum(0, np.minimum(front - x, x - back)))


def _fold_distance(head, x, y, z, near, pixel_mm):
    """Distance to the sulci's sheets: zero set of a field drawn out along the gyri's direction."""
    side = np.abs(y)
    core_x = np.clip(x, *CORE_X)
    reach = np.sqrt((x - core_x) ** 2 + (side - CORE_SIDE) ** 2 + 200)
    pull = 0.3 + 22 / reach
    u, v = core_x + (x - core_x) * pull, CORE_SIDE + (side - CORE_SIDE) * pull
    field = np.zeros(near.shape, np.float32)
    field[near] = head.folds(u, v, z) + OWN_FOLDS * head.own_folds(x, y, z)
    slope = np.hypot(*np.gradient(field, pixel_mm))
    return (np.abs(field) / np.hypot(slope, 0.12))[near]  # 0.12: sheets that lie in the slice


def _cortex_depth(head, x, y, z, outline, near, pixel_mm):
    """Depth into the cortex from the fluid around it, negative in that fluid."""
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


def _share(distance, softness):
    """Fraction of a pixel inside a structure, from its signed distance."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _tissue(head, x, y, z, outline, near, pixel_mm):
    """Grey levels before the scanner's faults, as a T1-weighted scan shows the tissues."""
    x, y = (p + WARP_MM * waves(x, y, z) for p, waves in zip((x, y), head.warp, strict=True))
    side, soft = np.abs(y), max(pixel_mm, 1.2)
    cortex = _cortex_depth(head, x, y, z, outline, near, pixel_mm)
    white = 1 - _share(cortex - head.cortex_mm, 2 * soft)
    for chains, level in NUCLEI:
        white += (level - white) * _share(_tube(chains, x, side, z), 3 * soft)
    image = head.grey + (head.white - head.grey) * white
    septum = 1 - side
    lateral = np.maximum(_tube(LATERAL_VENTRICLE, x, side, z, head.ventricles), septum)
    third = _tube(THIRD_VENTRICLE, x, side, z, head.ventricles)
    fluid = reduce(np.minimum, (cortex, lateral, third, _tube(CISTERN, x, side, z)))
    return image + (CSF - image) * _share(fluid, soft)


def _scan(head, rng, tissue, bias, inside, pixel_mm):
    """Bias field, point spread and Rician noise of a magnitude image; zero outside the brain."""
    signal = ndimage.gaussian_filter(tissue * (1 + BIAS * bias), POINT_SPREAD_MM / pixel_mm)
    real, imaginary = head.noise * rng.standard_normal((2, *signal.shape), np.float32)
    levels = np.clip(np.rint(np.hypot(signal + real, imaginary)), 1, 255)
    return np.where(inside, levels, 0).astype(np.uint8)


def _draw_slice(head, rng, position, size):
    scale = FRAME_MM / min(size)
    finer = int(np.ceil(scale / COARSEST_PIXEL_MM))
    pixel_mm = scale / finer
    halves = (int(np.ceil(mm / scale)) for mm in BOX_MM)
    box = [min(n, 2 * half + n % 2) for n, half in zip(size, halves, strict=True)]
    x, y, z = _head_coordinates(head, position, pixel_mm, [n * finer for n in box])
    outline = _outline_depth(head, x, y, z)
    near = outline > -3 * pixel_mm  # a margin for the folds' gradient and the point spread
    tissue = np.zeros_like(outline)
    tissue[near] = _tissue(head, *(p[near] for p in (x, y, z, outline)), near, pixel_mm)
    maps = (tissue, head.bias(x, y, z), outline > 0)
    tissue, bias, inside = (m.reshape(box[0], finer, box[1], finer).mean((1, 3)) for m in maps)
    image = np.zeros(size, np.uint8)
    top, left = ((n - b) // 2 for n, b in zip(size, box, strict=True))
    window = image[top : top + box[0], left : left + box[1]]
    window[:] = _scan(head, rng, tissue, bias, inside > 0.5, scale)
    return image


def phantom_slices(
    subject: int, positions: np.ndarray, size: tuple[int, int] = (256, 256), seed: int = 0
) -> np.ndarray:
    """Draws axial, skull-stripped, T1-like slices of one procedural brain.

    A slice depends on `seed`, `subject`, its own position and `size` alone, not on the other
    positions asked for. The head keeps its share of the frame's shorter side at every size.

    Args:
        subject: Which brain, 0 or more.
        positions: Heights of the slices, shape (n,), in [0, 1]: 0 the lowest, 1 the highest.
        size: (rows, cols) of the frame, in pixels.
        seed: Seed of the whole population, 0 or more.

    Returns:
        uint8 array of shape (n, rows, cols) in [0, 255]; the background is 0, the brain never is.

    Raises:
        InputError: If a position lies outside [0, 1], a side is too short, or a number is negative.
    """
    positions = np.atleast_1d(np.asarray(positions, np.float64))
    outside = positions[~((positions >= 0) & (positions <= 1))]
    if positions.ndim != 1 or outside.size:
        raise InputError(
            f"`positions` must be a list of numbers in [0, 1]. Received: {outside.tolist()} "
            f"among positions of shape {positions.shape}"
        )
    if min(size) < SMALLEST_SIDE:
        raise InputError(f"`size` must be at least {SMALLEST_SIDE} a side. Received: size={size}")
    if min(subject, seed) < 0:
        raise InputError(
            f"`subject` and `seed` must be 0 or more. Received: subject={subject}, seed={seed}"
        )
    head = _draw_subject(int(seed), int(subject))
    slices = np.zeros((len(positions), *size), np.uint8)
    for image, position in zip(slices, positions, strict=True):
        key = [int(seed), int(subject), int(position * 2**32)]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        image[:] = _draw_slice(head, rng, position, tuple(size))
    return slices
