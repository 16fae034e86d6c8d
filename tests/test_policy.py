"""A policy's file is read and checked before anything of it runs."""

import pytest

from emu.config import ConfigError, load
from emu.policy import FUNCTIONS, PolicyError, find_policy, read_policy, shipped_policies

pytestmark = pytest.mark.interpreted

GOOD = "def flush_after(cpu, cookie, fq):\n    return True\n"


def complaint(tmp_path, text):
    """What is said of a file, without its path."""
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(PolicyError) as error:
        read_policy(str(path))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}:")
    return str(error.value).removeprefix(f"{path}:")


@pytest.mark.parametrize("name", shipped_policies())
def test_those_that_come_with_emu_are_found_by_name(name):
    source = read_policy(name)
    assert source.name == name
    assert len(source.key) == 16


def test_kernel_defines_every_function_there_is():
    assert all(f"def {name}({', '.join(arguments[:1])}" in read_policy("kernel").text
               for name, arguments in FUNCTIONS.items())  # fmt: skip


def test_an_edit_gives_it_another_key(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    before = read_policy(str(path)).key
    path.write_text(GOOD + "\n# edited\n")
    assert read_policy(str(path)).key != before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def flush_after(cpu, cookie, fq)\n    return True\n", "1: expected ':'; correct it"),
        ("X = 1\n\n\ndef ring_off(cpu, cookie):\n    return 0\n", "4: nobody asks for ring_off, as ring_of is"),
        ("def ring_of(cpu):\n    return 0\n", "1: ring_of takes other arguments; write def ring_of(cpu, cookie,"),
        ("def ring_of(cpu, cookie, iova_pfn, pages=1):\n    return 0\n", "1: ring_of takes other arguments"),
        (GOOD.replace("return True", "fq.head = 0"), "1: flush_after does not always answer"),
        (GOOD.replace("    return", "    while cpu:\n        pass\n    return"), "2: flush_after: while may never end"),
        (GOOD.replace("return True", "raise ValueError"), "1: flush_after does not always answer"),
        (GOOD.replace("return True", "return (lambda: 1)()"), "2: flush_after: write a function with a name"),
        ("import numpy\n\n\n" + GOOD, "1: imports numpy, whose edits the cache of compiled code would not see"),
        ("from .other import x\n\n\n" + GOOD, "1: imports other"),
        ("state = 1\n" + GOOD, "1: state is neither a constant (in capitals) nor ring_state"),
        ("print('hello')\n" + GOOD, "1: only imports, constants, records and functions"),
        (GOOD + GOOD, "1: flush_after is defined twice"),
        ("@property\n" + GOOD, "2: flush_after has a decorator"),
        ("X = 1\n", "1: it defines no function that is asked for; define one of rings, ring_of,"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, said):
    assert said in complaint(tmp_path, text)


def test_a_name_that_there_is_not_names_those_that_there_are():
    with pytest.raises(PolicyError, match="no policy kernels; emu has adaptive_timeout, batching"):
        read_policy("kernels")


def test_a_description_names_a_file_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "machine.toml").write_text('[domain]\ntypes = ["DMA-FQ"]\npolicy = "mine.py"\n')
    monkeypatch.chdir("/")
    config = load(tmp_path / "machine.toml")
    assert config.domain.policy == str(tmp_path / "mine.py")
    assert load(config, overrides=[("machine", "cpus", 2)]).domain.policy == config.domain.policy


def test_an_option_names_a_file_from_where_we_are(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load(overrides=[("domain", "policy", "mine.py")]).domain.policy == str(tmp_path / "mine.py")
    assert find_policy("batching", tmp_path) == "batching"


def test_a_policy_needs_a_queue():
    with pytest.raises(ConfigError, match=r"domain.policy needs a domain with a flush queue"):
        load(overrides=[("domain", "types", ["DMA"]), ("domain", "policy", "kernel")])


def test_a_wrong_file_makes_the_description_wrong(tmp_path):
    path = tmp_path / "machine.toml"
    path.write_text('[domain]\npolicy = "nosuch.py"\n')
    with pytest.raises(ConfigError, match=r"machine.toml: domain.policy: cannot read .*nosuch.py: No such file"):
        load(path)
