import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brainslices.data.label_maps import (
    has_label_name,
    is_faint,
    is_label_map,
    is_lossy_mask,
    is_tissue_map,
)
from brainslices.data.phantom import phantom_slices

NAMES = [
    "sub-01/anat/sub-01_dseg.nii.gz",
    "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
    "sub-01/anat/sub-01_label-GM_probseg.nii.gz",
    "sub-01_desc-aseg_dseg.nii.gz",
    "OASIS_OAS1_0001_MR1/seg4.nii.gz",
    "OASIS_OAS1_0001_MR1/seg35.nii.gz",
    "OASIS_OAS1_0001_MR1/seg24_onehot.nii.gz",
    "labelsTr/BRATS_001.nii.gz",
    "labelsTs/BRATS_001.nii.gz",
    "mri/aseg.mgz",
    "mri/aparc+aseg.mgz",
    "mri/aparc.a2009s+aseg.mgz",
    "mri/lh.ribbon.mgz",
    "mri/wmparc.mgz",
    "TCGA_CS_4941_19960909_1_mask.tif",
    "masks/1.png",
    "keras_png_slices_seg_train/seg_001_slice_0.nii.png",
    "seg_001_slice_0.nii.png",
    "x_fseg.tif",
    "FSL_SEG/case_1.png",
    "patient_gt.nii.gz",
    "sub-01_T1w_defacemask.nii.gz",
    "sub-01_label-lesion_roi.nii.gz",
    "sub-01_lesion.nii.gz",
    "sub-01_space-T1w_label-L_mask.nii",
    "1_label.png",
    "label/1.png",
    "brain-mask.nii.gz",
    "facemask.nii.gz",
    "img_001_mask_slice_3.png",
    "OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc_fseg.img",
    "brats_seg.nii.gz",
    "groundtruth/1.bmp",
    "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
    "mri/wm.mgz",
    "sub-01_T1w_pve_0.nii.gz",
    "sub-01_T1w_pveseg.nii.gz",
    "mri/lh.hippoAmygLabels-T1.v21.mgz",
    "IBSR_01_segTRI_ana.nii.gz",
    "T1_all_fast_firstseg.nii.gz",
    "T1_all_fast_origsegs.nii.gz",
    "sub-01_BrainExtractionMask.nii.gz",
    "BrainSegmentationPosteriors1.nii.gz",
    "sub-01_T1w_synthseg.nii.gz",
    "LabelsForTraining.nii",
    "sub-strokecase0001_ses-0001_msk.nii.gz",
    "T1Mask.nii.gz",
    "truth.nii.gz",
    "ground-truth/1.png",
    "Annotations/1.png",
    "mask1.png",
    "mask-001.png",
]
OTHERS = [
    "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
    "case_001_slice_0.nii.png",
    "OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img",
    "mri/brainmask.mgz",
    "mri/T1.mgz",
    "imagesTr/BRATS_001_0000.nii.gz",
    "sub-mask_T1w.nii.gz",
    "sub-01_acq-label_T1w.nii.gz",
    "sub-gt_T1w.nii.gz",
    "no_lesion/1.png",
    "sub-01_desc-skullstripped_T1w.nii.gz",
    "segmented_brain/1.png",
    "OAS1_0028_MR1_mpr-1_100.jpg",
    "unmasked.nii",
    "sub-gm_T1w.nii",
    "wmSub01_T1w.nii",
    "maskedT1.nii.gz",
    "T1_masked.nii",
    "Segmented/1.png",
    "GMC_001_T1.nii",
    "wmsub-01_T1w.nii",  # warped and bias-corrected, by SPM
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_label_maps_are_known(name):
    assert has_label_name(name.split("/"))


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_scans_are_none(name):
    assert not has_label_name(name.split("/"))


def head(size=48, levels=255):
    """A noisy, skull-stripped head of 8 bits."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")
    noise = np.random.default_rng(0).normal(0, 0.04, (size,) * 3)
    tissue = 0.55 + 0.25 * np.sin(6 * x) * np.cos(5 * y + z) + noise
    return np.rint((x**2 + y**2 + z**2 < 0.8) * tissue.clip(0, 1) * levels).astype(np.uint8)


def atlas(labels, size=48):
    """Regions of a ball around random seeds, with the numbers of an atlas."""
    rng, shape = np.random.default_rng(labels), (size,) * 3
    seeds = np.ones(shape, bool)
    index = np.full(shape, 0)
    for label in rng.permutation(labels) + 1:
        spot = tuple(rng.integers(0, size, 3))
        seeds[spot], index[spot] = False, label
    nearest = ndimage.distance_transform_edt(seeds, return_distances=False, return_indices=True)
    return np.where(head(size) > 0, index[tuple(nearest)] * 11, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_masks_and_tissue_classes_are_label_maps(dtype):
    mask, tissue = head() > 0, head() // 80
    for volume in (mask * 1, mask * 255, tissue, tissue * 20):
        assert is_label_map(volume.astype(dtype))
        assert is_label_map(volume[..., 24].astype(dtype))
    assert is_label_map((mask * 0.7).astype(np.float32))  # two values of any kind
    assert is_label_map(mask)


@pytest.mark.parametrize("labels", [20, 35, 100, 200, 600])
def test_atlases_are_label_maps(labels):
    volume = atlas(labels)
    assert len(np.unique(volume)) > 16
    assert is_label_map(volume)
    assert is_label_map(volume * 0.37)
    assert is_label_map(volume.astype(np.float32) + 1e-5)  # as a header's slope leaves it


def test_parcellations_into_equal_parts_are_label_maps():
    step = np.arange(96) // 12  # 8 x 8 x 8 parts, cut by the surface of the head
    parts = step[:, None, None] * 64 + step[:, None] * 8 + step + 1
    volume = np.where(head(96) > 0, parts, 0)
    assert len(np.unique(volume)) > 200
    assert is_label_map(volume)
    enlarged = np.repeat(np.repeat(head(96)[::4, ::4], 4, 0), 4, 1)
    assert not is_label_map(enlarged)


def test_probabilities_of_one_head_are_label_maps_and_clipped_scans_are_none():
    scan = ndimage.gaussian_filter(head(96).astype(float), 1) / 255
    probabilities = np.clip((scan - 0.45) / 0.1, 0, 1).astype(np.float32)
    assert is_label_map(probabilities)
    assert not is_label_map(probabilities * 255)
    limit = np.percentile(scan, 95)
    assert not is_label_map((scan.clip(0, limit) / limit).astype(np.float32))


def test_small_mask_off_the_middle_is_a_label_map():
    lesion = np.zeros((40, 40, 40), np.uint8)
    lesion[3:6, 3:6, 7] = 1
    assert is_label_map(lesion)


@pytest.mark.parametrize("levels", [255, 100, 40])
def test_skull_stripped_heads_of_few_levels_are_no_label_maps(levels):
    volume = head(levels=levels)
    smooth = np.rint(ndimage.gaussian_filter(volume.astype(float), 2)).astype(np.uint8)
    zoomed = ndimage.zoom(volume, 2, order=1)
    for image in (volume, volume[..., 24], smooth, smooth[..., 24], zoomed, zoomed[..., 48]):
        assert not is_label_map(image)
    assert not is_label_map(volume.astype(np.float32) * 3.7)


@pytest.mark.parametrize("side", [48, 128])
def test_phantoms_are_no_label_maps(side):
    for image in phantom_slices(0, [0.0, 0.5, 1.0], (side, side), 0):
        assert not is_label_map(image)


def test_constant_and_probability_maps_are_no_label_maps():
    assert not is_label_map(np.zeros((9, 9, 9)))
    assert not is_label_map(np.full((9, 9), np.nan))
    assert not is_label_map(np.linspace(0, 1, 9**3).reshape(9, 9, 9))


@pytest.mark.slow
@pytest.mark.parametrize("quality", [20, 50, 75])
def test_masks_are_known_in_jpeg_and_heads_are_none(quality):
    def as_jpeg(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=quality)
        return np.asarray(Image.open(file))

    scan = head(256)[..., 128]
    for grey in (90, 255):
        assert is_lossy_mask(as_jpeg(((scan > 0) * grey).astype(np.uint8)))
    assert not is_lossy_mask(as_jpeg(scan))
    assert not is_lossy_mask(as_jpeg(scan // 4))  # saved without a window
    for image in phantom_slices(0, [0.2, 0.5, 0.8], (128, 128), 0):
        assert not is_lossy_mask(as_jpeg(image))
    assert not is_lossy_mask(np.zeros((9, 9), np.uint8))


@pytest.mark.parametrize(
    "name",
    ["c1anat.nii", "wc2sub-01_T1w.nii.gz", "smwc3IXI002.nii", "rc6a.nii"]
    + ["p0sub-01_T1w.nii", "mwp1sub-01_T1w.nii", "m0wp2IXI002.nii"],
)
def test_tissue_maps_of_spm_are_known_by_name_and_values(name):
    probabilities = np.linspace(0, 1, 9**3).reshape(9, 9, 9)
    assert is_tissue_map(name, probabilities)
    assert is_tissue_map(name, probabilities * 1.4)  # modulated
    assert not is_tissue_map(name, probabilities * 900)  # the scan of control 1
    for scan in ("case_1.nii", "c1.nii", "c1_T1w.nii", "p01_T1w.nii", "p1_T1w.nii"):
        assert not is_tissue_map(scan, probabilities)


def test_slices_above_the_head_are_faint_and_masks_are_not():
    image = np.zeros((64, 64), np.uint8)
    image[30:33, 30:33] = 200
    assert is_faint(image)  # a small area
    assert is_faint(np.random.default_rng(0).integers(0, 4, (64, 64)))  # a small span
    assert not is_faint(((head() > 0) * 255).astype(np.uint8)[..., 24])
