"""The job that would be sent, as ``--explain`` shows it, and what it advises."""

from pipeline.cli import OK, SETUP, main
from pipeline.dataflow import checks


def test_explain_prints_the_job_and_sends_nothing(world, capsys):
    assert main(world.command("explained", explain=True, max_num_workers=4)) == OK
    told = " ".join(capsys.readouterr().out.split())
    for part in (
        "24 rows in 1 files, 4 parts",
        "up to 4 × a3-highgpu-8g: 8 × NVIDIA H100 80 GB",
        "type:nvidia-h100-80gb;count:8;install-nvidia-driver:5xx",
        "353.00 with all of them",
        "ReadPrompts/Read → Generate/BeamML_RunInference → WriteCompletions/Commit",
        "no_use_multiple_sdk_containers",
        "us-docker.pkg.dev/some-project/repo/grok1:1",
    ):
        assert part in told
    assert main(["status", f"{world.bucket}/explained"]) == SETUP  # nothing was claimed


def test_explain_takes_another_table_of_prices(world, capsys, tmp_path):
    table = tmp_path / "rates.toml"
    table.write_text("[h100x8]\nusd_per_hour = 12.5\nreach_p50 = 0.5\nreach_p90 = 0.4\n")
    command = world.command("explained", explain=True, rates=table, max_num_workers=2)
    assert main(command) == OK
    assert "12.50 US$ an hour each, 25.00 with all of them" in capsys.readouterr().out
    assert main(world.command("explained", rates=table)) == SETUP
    assert "--rates is for --explain" in capsys.readouterr().err


def test_without_a_reservation_it_is_said_how_to_make_one(world, capsys):
    assert main(world.command("explained", explain=True, max_num_workers=4)) == OK
    assert (
        "gcloud compute reservations create grok1 --zone=us-central1-a --vm-count=4 "
        "--machine-type=a3-highgpu-8g --project=some-project, then add "
        "--dataflow_service_options=automatically_use_created_reservation"
    ) in capsys.readouterr().err
    reserved = "--dataflow_service_options=automatically_use_created_reservation"
    assert main([*world.command("explained", explain=True), reserved]) == OK
    captured = capsys.readouterr()
    assert "reserv" not in captured.err
    # The profile's own accelerator stands beside it.
    assert "worker_accelerator=type:nvidia-h100-80gb" in captured.out


def test_a_region_without_the_machine_is_pointed_out(world, capsys):
    assert main(world.command("explained", explain=True, region="me-west1")) == OK
    assert "none of those in which Dataflow's 8 × NVIDIA H100" in capsys.readouterr().err


def test_workers_without_work_are_pointed_out(world, capsys):
    command = world.command("explained", explain=True, max_num_workers=4)
    assert main(command) == OK
    told = " ".join(capsys.readouterr().out.split())
    assert "in 4 pieces, of which a worker takes 8 at once, so that 3 of 4 workers may" in told
    assert "--max_num_workers=1" in told
    # With one at a time, each worker has one.
    assert main([*command, "--number_of_worker_harness_threads=1"]) == OK
    told = " ".join(capsys.readouterr().out.split())
    assert "4 pieces of work, 1 at once on a worker" in told
    assert "may have none" not in told


def test_the_advice_leaves_each_worker_some_work():
    assert checks.spread_advice(4, 1, 8, 24) is None
    assert checks.spread_advice(25, 4, 8, 24) is None
    assert checks.spread_advice(0, 4, 8, 0) is None
    told = checks.spread_advice(9, 4, 8, 320)
    assert "2 of 4 workers may have none; give --max_num_workers=2, or cut it" in (told or "")
    assert "--chunk-rows 10" in (told or "")
