import subprocess
import sys

import pytest

import mpcompress.latent_codecs as package

NEURAL = [
    "FeatureScaleHyperprior",
    "HyperLatentCodecWithCtx",
    "HyperpriorLatentCodecWithCtx",
    "VitUnionLatentCodec",
    "VitUnionLatentCodecWithCtx",
]


def test_package_lists_its_classes_without_importing_torch():
    code = (
        "import sys, mpcompress, mpcompress.latent_codecs as package\n"
        "print(*dir(package))\n"
        "assert not {'torch', 'compressai', 'numba'} & set(sys.modules), 'a heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(NEURAL) <= set(done.stdout.split())


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchCodec"):
        _ = package.NoSuchCodec


@pytest.mark.parametrize("name", NEURAL)
def test_every_class_is_found_under_its_name(name):
    pytest.importorskip("torch")
    pytest.importorskip("mpcompress.layers._compressai", reason="needs compressai")
    assert getattr(package, name).__name__ == name
