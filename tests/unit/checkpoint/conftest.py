"""Fixtures over the tiny networks of conversion_networks.py."""

import conversion_networks
import pytest


@pytest.fixture(params=list(conversion_networks.MODELS.values()), ids=list(conversion_networks.MODELS))
def model(request):
    """Each tiny network in turn."""
    return request.param


@pytest.fixture
def one_model():
    """One tiny network, untied; a test may change it."""
    return conversion_networks.tiny_model()


@pytest.fixture
def write_hf(tmp_path):
    """Function (model, tensors=random, name="hf") -> directory with config.json and model.safetensors."""

    def write(model, tensors=None, name="hf"):
        tensors = conversion_networks.random_tensors(model) if tensors is None else tensors
        return conversion_networks.write_hf(tmp_path / name, model, tensors)

    return write
