import pytest
from helpers import ROOT, script_main

from brainslices.data.preparation import SourceConfig, make_archive
from brainslices.errors import InputError
from brainslices.resources import check_needed
from pixelcnn.config import PRESETS, PixelCNNConfig
from vqvae.config import PRESETS as VQVAE_PRESETS
from vqvae.config import VQVAEConfig


def test_what_the_machine_has_is_accepted(tmp_path):
    check_needed("count=1", memory=1e6, disk=1e3, folder=tmp_path / "new" / "folder")


@pytest.mark.parametrize(
    ("needed", "place"), [({"memory": 1e15}, "memory"), ({"disk": 1e18}, "disk")], ids=str
)
def test_more_is_refused_with_both_figures(needed, place, tmp_path):
    match = rf"count=9 would need at least 1e\+0. GB .*{place}.* has .* GB"
    with pytest.raises(InputError, match=match):
        check_needed("count=9", **needed, folder=tmp_path / "new")


@pytest.mark.parametrize(
    "changes",
    [{"channels": 10**20, "attention_heads": 1}, {"layers": 10**9}, {"head_width": 10**12}],
    ids=str,
)
def test_priors_beyond_the_memory_are_refused(changes):
    values = vars(PRESETS["default"].model) | {"attention_layers": 0}
    with pytest.raises(InputError, match=f"{next(iter(changes))}=.*memory"):
        PixelCNNConfig(**values | changes)


@pytest.mark.parametrize(
    "changes", [{"encoder_blocks": 10**9}, {"decoder_blocks": 10**20}], ids=str
)
def test_vqvaes_beyond_the_memory_are_refused(changes):
    with pytest.raises(InputError, match=f"{next(iter(changes))}=.*memory"):
        VQVAEConfig(**vars(VQVAE_PRESETS["default"].model) | changes)


@pytest.mark.parametrize(
    "changes",
    [{"slices": 10**9}, {"size": (32_768, 32_768)}, {"subjects": 10**12}, {"slices": 10**30}],
    ids=str,
)
def test_archives_beyond_the_machine_are_refused(changes, tmp_path):
    config = SourceConfig(source="phantom", out=tmp_path / "out", **changes)
    with pytest.raises(InputError, match=f"{next(iter(changes))}=.* would need"):
        make_archive(config)


@pytest.mark.parametrize(("flag", "place"), [("workers", "memory"), ("trials", "disk")])
def test_searches_beyond_the_machine_are_refused(flag, place, tmp_path, capsys):
    main = script_main(ROOT / "scripts" / "tune.py")
    with pytest.raises(SystemExit):
        main(["--data", "x", "--out", str(tmp_path / "out"), f"--{flag}", str(10**15)])
    message = " ".join(capsys.readouterr().err.split())
    assert f"{flag}={10**15} would need" in message
    assert place in message
