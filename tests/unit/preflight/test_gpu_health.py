"""What nvidia-smi prints is read; a stand-in program answers as several drivers do."""

import sys

import pytest

from megatron_medx.preflight import gpu_health

LINE = "580.65.06, 0, No, No, 1395, 1980, 61, 540, 0x0000000000000004\n"


def test_a_healthy_gpu():
    health = gpu_health.parse_health(LINE)
    assert health["driver"] == "580.65.06" and health["uncorrected_ecc"] == 0 and health["remap_pending"] == 0
    assert (health["sm_mhz"], health["max_sm_mhz"], health["temperature_c"], health["used_mib"]) == (
        1395,
        1980,
        61,
        540,
    )
    assert health["reasons"] == [], "a power limit under load is no fault"


def test_a_gpu_in_trouble():
    health = gpu_health.parse_health("580.65.06, 3, Yes, No, 345, 1980, 91, 540, 0x00000000000000E8\n")
    assert health["uncorrected_ecc"] == 3 and health["remap_pending"] == 1 and health["remap_failed"] == 0
    assert set(health["reasons"]) == {
        "hardware slowdown",
        "software thermal slowdown",
        "hardware thermal slowdown",
        "power brake",
    }


def test_a_gpu_without_ecc():
    health = gpu_health.parse_health("550.1, [N/A], [N/A], [Not Supported], 345, 1980, 40, 540, [N/A]\n")
    assert health["uncorrected_ecc"] is None and health["remap_failed"] is None and health["reasons"] == []


@pytest.mark.parametrize("text", ["", "No devices were found\n", "1, 2, 3\n"])
def test_an_answer_that_cannot_be_read(text):
    assert "error" in gpu_health.parse_health(text)


def stand_in(folder, monkeypatch, body):
    """Put a program called nvidia-smi before all others."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_an_older_driver_is_asked_by_the_older_name(tmp_path, monkeypatch):
    body = f"""
if "clocks_event_reasons.active" in sys.argv[2]:
    sys.exit('Field "clocks_event_reasons.active" is not a valid field to query.')
assert sys.argv[1] == "--id=GPU-1234" and "clocks_throttle_reasons.active" in sys.argv[2]
sys.stdout.write({LINE!r})"""
    stand_in(tmp_path, monkeypatch, body)
    assert gpu_health.read_health("GPU-1234")["sm_mhz"] == 1395


def test_no_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia-smi" in gpu_health.read_health("GPU-1234")["error"]


def test_a_gpu_that_fell_off_the_bus(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "sys.stdout.write('Unable to determine the device handle for GPU0'); sys.exit(15)")
    assert "Unable to determine" in gpu_health.read_health("GPU-1234")["error"]


def test_a_driver_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_health, "QUERY_S", 0.3)
    stand_in(tmp_path, monkeypatch, "time.sleep(20)")
    assert "timed out" in gpu_health.read_health("GPU-1234")["error"]
