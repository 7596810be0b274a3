import importlib.util

import pytest
from helpers import ROOT, script_main

from brainslices.errors import InputError


def test_missing_gradio_is_named_with_its_extra(monkeypatch, tmp_path):
    main = script_main(ROOT / "scripts" / "studio.py")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name)
    )
    with pytest.raises(InputError, match=r'pip install --editable "\.\[studio\]"'):
        main(["--run", str(tmp_path)])
