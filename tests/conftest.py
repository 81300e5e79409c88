"""Fixtures that several test modules share: a few labelled frames and small models fitted to them.

The models are tiny and their noise levels generous: they are there to be differentiated, saved and provoked, not
to be accurate.
"""

import os

# before NumPy is loaded: matrices here are small, and threads would only fight over the cores
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# nothing is kept in the user's folders
os.environ.setdefault("KQEQ_BASELINE_CACHE", "off")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "kqeq",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("kqeq")

ALONE = ("tests/test_examples.py", "tests/test_docs.py", "tests/test_notebooks.py", "tests/test_readme.py")
"""Files whose tests share nothing: pytest-xdist gives each of them to whichever process is free."""

LONGEST = (
    "tests/test_examples.py::test_example[05_",
    "tests/test_docs.py::test_quick_start",
    "tests/test_examples.py::test_example[02_",
    "tests/test_docs.py::test_every_command",
    "tests/test_examples.py::test_example[10_",
    "tests/test_examples.py::test_example[07_",
    "tests/fitting/test_charge_aware.py",
    "tests/fitting/test_device_fit.py",
    "tests/fitting/test_site_kernels.py",
    "tests/fitting/test_parallel_fit.py",
    "tests/test_ase_workflows.py",
    "tests/test_benchmarks.py",
    "tests/kernels/test_kernel_sums.py",
    "tests/potential/test_on_baseline.py",
    "tests/cli/test_cli.py",
    "tests/test_generate_periodic.py",
    "tests/cli/test_written_frames.py",
    "tests/frames/test_neighbours.py",
)
"""They begin, so that no process is left with one of them when the others have ended; the rest follows as collected."""


def pytest_collection_modifyitems(items):
    def rank(item):
        return next((i for i, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)  # there is no such hook without pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            scope = super()._split_scope(nodeid)
            return nodeid if scope in ALONE else scope

    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # files with the most tests are not those that take longest
    return Scheduling(config, log)


NOISE = {"energy": 0.05, "forces": 0.5, "dipole": 0.05}


def small_kernel(r_cut=3.5, **options):
    """A kernel that is fast to evaluate."""
    from kqeq import SOAPKernel

    return SOAPKernel(**{"r_cut": r_cut, "n_max": 4, "l_max": 3, "n_representatives": 6, **options})


@pytest.fixture(scope="session")
def kernel():
    """Builds small kernels: ``kernel(r_cut, zeta=...)``."""
    return small_kernel


@pytest.fixture(scope="session")
def water_systems():
    """Frames of the packaged water set by system: water1, water2 ... hydronium, hydroxide."""
    import kqeq

    systems = {}
    for atoms in kqeq.datasets.load("water"):
        systems.setdefault(atoms.info["system"], []).append(atoms)
    return systems


@pytest.fixture(scope="session")
def water_training(water_systems):
    """Twelve frames of charge −1, 0 and +1."""
    names = ("water1", "water2", "hydronium", "hydroxide")
    return [water_systems[name][i] for name in names for i in (0, 3, 6)]


@pytest.fixture(scope="session")
def water_model(water_training):
    """Charges and short-range energy, fitted to energies, forces and dipoles."""
    from kqeq import KQEq

    return KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE).fit(water_training)


@pytest.fixture(scope="session")
def ion_frames():
    """Water and hydronium, in the order of the file."""
    import kqeq

    return [a for a in kqeq.datasets.load("water") if a.info["system"] in ("hydronium", "water1")]


@pytest.fixture(scope="session")
def ion_model(ion_frames):
    """Charges and short-range energy, smooth enough for geometries to be relaxed and for dynamics."""
    from kqeq import KQEq

    def kernel():
        return small_kernel(n_max=5, l_max=4, sigma=0.4, n_representatives=12)

    return KQEq(kernel(), kernel(), max_iterations=200).fit(ion_frames[::2])


@pytest.fixture(scope="session")
def dipole_model(water_training):
    """Charges alone, fitted to dipoles."""
    from kqeq import KQEq

    return KQEq(small_kernel(3.5), short_range=None, targets=["dipole"]).fit(water_training)


@pytest.fixture(scope="session")
def short_range_model(water_training):
    """A short-range potential without charges."""
    from kqeq import KQEq

    return KQEq(electronegativity=None, charges=None, short_range=small_kernel(4.0, zeta=4), noise=NOISE).fit(
        water_training
    )
