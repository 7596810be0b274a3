import pytest

from brainslices.data.split_folders import find_split_folders


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "test"), {"train": "train", "test": "test"}),
        (
            ("png_train", "png_validate", "png_test", "png_seg_train"),
            {"png_train": "train", "png_validate": "validate", "png_test": "test"},
        ),
        (("Training", "Testing"), {"Training": "train", "Testing": "test"}),
        (
            ("trainset", "dev", "eval", "x"),
            {"trainset": "train", "dev": "validate", "eval": "validate"},
        ),
        (("train_images", "valid_images"), {"train_images": "train", "valid_images": "validate"}),
        (("training-data", "test-data"), {"training-data": "train", "test-data": "test"}),
        (("train2017", "val2017"), {"train2017": "train", "val2017": "validate"}),
        (("1_train", "2_test"), {"1_train": "train", "2_test": "test"}),
        (
            ("train_1", "train_2", "test_1"),
            {"train_1": "train", "train_2": "train", "test_1": "test"},
        ),
        (("imagesTr", "imagesTs"), {"imagesTr": "train", "imagesTs": "test"}),
        # Once siblings name splits, the same names count everywhere.
        (("a/train", "a/test", "b/train"), {"train": "train", "test": "test"}),
        (("train",), {}),
        (("ses-test", "ses-train"), {}),
        (("sub-1/ses-test", "sub-1/ses-retest"), {}),
        (("scanner_test", "protocol_train"), {}),
        (("a/train", "b/test"), {}),
        (("pre_test", "post_test"), {}),
    ],
)
def test_siblings_together_name_splits(folders, expected):
    assert find_split_folders(f"{folder}/file.png" for folder in folders) == expected
