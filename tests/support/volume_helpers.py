"""A synthetic head, and how tests save it."""

import nibabel as nib
import numpy as np

SHAPE, SPACING = (30, 40, 24), (2.0, 1.5, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, 3] = (-29, -29, -30)  # world z of the lowest plane: -30 mm


def head():
    """An ellipsoid in planes 4 to 19, darker to the left, with a bright front and top."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 0.7) ** 2 < 1
    return (inside * (500 + 150 * x + 200 * y + 100 * z)).astype(np.float32)


def save_volume(path, voxels, affine=AFFINE, kind=nib.Nifti1Image):
    nib.save(kind(voxels, affine), path)
    return path
