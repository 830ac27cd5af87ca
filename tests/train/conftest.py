import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums of several threads may come in any order: what is compared bit for bit has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
