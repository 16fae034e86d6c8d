"""Published claims as experiments: their files say what they need, and what is measured decides."""

import pytest

from emu.analysis.claims import CANNOT_BE_SHOWN, DOES_NOT_HOLD, HOLDS
from emu.claims import measure
from emu.claims.claim import Claim, read_claims
from emu.claims.measure import Bench
from emu.config import ConfigError

CLAIMS = {claim.id: claim for claim in read_claims()}
MINIMAL = {"id": "C1", "statement": "it collapses", "source": "a mail", "reading": "as drawn"}
CURVE = {
    "name": "a curve",
    "machine": {"preset": "smmuv3", "domain": "DMA"},
    "tolerance": 0.25,
}
FIT = {"section": "hypervisor", "key": "intercept_ns", "values": [100.0, 1000.0]}


def bench(engine="sim", rounds=2, **changes):
    return Bench(engine, rounds, changes, lambda _done, _known: None, lambda _part: None)


def verdicts(claim, **changes):
    return {finding.name: finding.verdict for finding in bench(**changes).findings([CLAIMS[claim]])}


def test_all_published_claims_are_there():
    assert list(CLAIMS) == [f"C{number}" for number in range(1, 12)]


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_names_its_source_and_how_it_is_read(claim):
    assert len(claim.source) > 10
    assert len(claim.reading) > 10


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_every_machine_of_a_claim_can_be_described(claim):
    machines = [machine for ratio in claim.ratio for machine in (ratio.of, ratio.to)]
    machines += [part.machine for part in (*claim.curve, *claim.growth)]
    for machine in machines:
        config = claim.config_of(machine)
        assert config.hypervisor.preset == machine.preset
        assert config.domain.types == [machine.domain]


def test_both_sides_of_a_ratio_have_the_same_load():
    for claim in CLAIMS.values():
        for ratio in claim.ratio:
            of, to = claim.config_of(ratio.of), claim.config_of(ratio.to)
            assert (of.machine, of.workload, of.costs, of.hypervisor) == (
                *(to.machine, to.workload, to.costs),
                to.hypervisor,
            ), (claim.id, ratio.name)


def test_hypervisors_of_the_series_have_one_set_of_numbers_for_all_its_claims():
    for name in ("C1", "C2", "C3", "C4", "C5"):
        for ratio in CLAIMS[name].ratio:
            for machine in (ratio.of, ratio.to):
                assert not machine.settings.keys() & {"hypervisor", "costs"}
        assert not CLAIMS[name].settings.keys() & {"hypervisor", "costs"}


@pytest.mark.parametrize("claim", ["C4", "C7", "C11"])
def test_it_holds(claim):
    assert set(verdicts(claim, **_short(claim)).values()) == {HOLDS}


def test_all_eight_points_of_the_command_queue_are_met_with_the_same_two_constants():
    fits = [
        fit.model_copy(update={"values": [value]}) for fit, value in zip(CLAIMS["C8"].fit, (315.0, 106.0), strict=True)
    ]
    claim = CLAIMS["C8"].model_copy(update={"fit": fits})
    findings = list(bench(machine={"seconds": 0.003}).findings([claim]))
    assert [finding.verdict for finding in findings] == [HOLDS, HOLDS]
    assert [len(finding.details["points"]) for finding in findings] == [4, 4]


def test_without_lines_that_are_fought_over_the_command_queue_does_not_collapse():
    fits = [
        fit.model_copy(update={"values": [value]}) for fit, value in zip(CLAIMS["C8"].fit, (315.0, 0.0), strict=True)
    ]
    claim = CLAIMS["C8"].model_copy(update={"fit": fits, "curve": CLAIMS["C8"].curve[:1]})
    (finding,) = bench(machine={"seconds": 0.002}).findings([claim])
    assert finding.verdict == DOES_NOT_HOLD
    assert finding.details["points"][-1]["measured"] > 3 * 11.0


def test_a_timers_flush_takes_longer_out_of_proportion_to_the_cpus():
    growth = CLAIMS["C9"].growth[0].model_copy(update={"cpus": [16, 64, 256]})
    (finding,) = bench(rounds=1).findings([CLAIMS["C9"].model_copy(update={"growth": [growth]})])
    assert finding.measured.value > 1.1


@pytest.mark.parametrize("claim", ["C4", "C7"])
def test_a_flush_of_one_constant_does_not_show_it(claim):
    constant = {"walk_ns": 0.0, "change_ns": 0.0}
    assert set(verdicts(claim, hypervisor=constant, **_short(claim)).values()) == {DOES_NOT_HOLD}


def _short(claim):
    return {"machine": {"seconds": 0.3}} if claim in ("C4", "C7") else {}


def test_too_few_cores_are_no_reason_to_doubt_it(monkeypatch):
    monkeypatch.setattr(measure, "cores", lambda: 4)
    findings = list(bench("processes").findings([CLAIMS["C2"]]))
    assert [finding.verdict for finding in findings] == [CANNOT_BE_SHOWN] * len(CLAIMS["C2"].ratio)
    assert "needs 5 cores, here are 4" in findings[0].why


def test_real_processes_show_what_they_have_cores_for():
    ratio = {
        "name": "lazy to strict",
        "at_least": 1.0,
        "of": {"preset": "lpar", "domain": "s390-lazy"},
        "to": {"preset": "lpar", "domain": "s390-strict"},
    }
    settings = {"machine": {"cpus": 1, "seconds": 0.2}, "hypervisor": {"intercept_ns": 20_000.0}}
    claim = Claim.model_validate({**MINIMAL, "settings": settings, "ratio": [ratio]})
    (finding,) = bench("processes", rounds=1).findings([claim])
    assert finding.verdict == HOLDS


@pytest.mark.parametrize(
    ("more", "verdict"), [({}, DOES_NOT_HOLD), ({"beyond_model": "it has no such queue"}, CANNOT_BE_SHOWN)]
)
def test_a_curve_that_is_not_met_is_blamed_on_the_model_only_where_its_file_says_why(more, verdict):
    # No hardware is slower the more there are who wait for it.
    curve = {**CURVE, "published": {"2": 100.0, "4": 1.0}, **more}
    claim = Claim.model_validate(
        {**MINIMAL, "curve": [curve], "fit": [FIT], "settings": {"machine": {"seconds": 0.002}}}
    )
    (finding,) = bench().findings([claim])
    assert finding.verdict == verdict
    assert finding.why.startswith(more.get("beyond_model", "hypervisor.intercept_ns"))


def test_a_curve_is_met_with_the_value_that_was_fitted():
    curve = {**CURVE, "published": {"4": 240.0, "8": 120.0}}
    other = {**CURVE, "name": "another", "published": {"4": 225.0, "16": 58.0}}
    curves = {"curve": [curve, other], "fit": [FIT], "settings": {"machine": {"seconds": 0.002}}}
    findings = list(bench().findings([Claim.model_validate({**MINIMAL, **curves})]))
    assert [finding.details["fitted"] for finding in findings] == [{"hypervisor.intercept_ns": 1000.0}] * 2
    assert [finding.verdict for finding in findings] == [HOLDS, HOLDS]


def test_a_fit_takes_every_combination_of_its_constants():
    fits = [FIT, {"section": "costs", "key": "transfer_ns", "values": [1.0, 2.0, 3.0]}]
    curve = {**CURVE, "published": {"4": 1.0, "8": 1.0}}
    claim = Claim.model_validate({**MINIMAL, "curve": [curve], "fit": fits})
    assert len(claim.combinations) == 6
    assert {"hypervisor": {"intercept_ns": 1000.0}, "costs": {"transfer_ns": 2.0}} in claim.combinations


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('id = "C1"\nstatement = "s"\nreading = "r"', "c.toml: source: Field required"),
        ('id = "C1"\nstatement = "s"\nsource = "s"\nreading = "r"', "measures nothing"),
        (
            (
                'id = "C1"\nstatement = "s"\nsource = "s"\nreading = "r"\n[[fit]]\nsection = "s"\nkey = "k"\n'
                'values = [1.0]\n[[ratio]]\nname = "r"\nat_least = 1.0\nof = {preset = "kvm", domain = "DMA"}\n'
                'to = {preset = "kvm", domain = "DMA"}'
            ),
            "need each other",
        ),
        ("id = ", "c.toml is not TOML"),
    ],
)
def test_a_file_that_is_no_claim_is_one_line(tmp_path, text, complaint):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_claims(tmp_path)
