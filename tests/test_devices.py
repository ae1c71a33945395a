"""Rows over many devices: eight of a CPU, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import by_dtype

CLOSE = by_dtype(1e-4, 1e-9)


@pytest.fixture(scope="module")
def report():
    script = Path(__file__).with_name("eight_devices.py")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=900
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout)


def test_inside_shard_map_each_device_has_what_its_own_rows_give(report):
    """Where JAX checks over which axes things vary, as it does unless told not to."""
    assert {name: gap for name, gap in report["in shard_map"].items() if not gap < CLOSE} == {}


def test_statistics_of_all_devices_are_those_of_all_rows(report):
    """By the README's recipe, which moves nothing but statistics between devices."""
    assert report["recipe"] < 10 * CLOSE
    assert report["recipe sums"] and not report["recipe gathers"]


def test_models_and_rows_are_spread_along_axes_of_a_mesh(report):
    """Of batches and sweeps, with weights, priors and starts; and what takes rows, or points."""
    gaps = report["spread along two axes"]
    assert {name: gap for name, gap in gaps.items() if not gap < 30 * CLOSE} == {}


def test_results_on_a_mesh_go_wherever_others_do(report):
    assert report["afterwards"] == {}


def test_bad_data_on_a_mesh_are_named(report):
    of_x, of_weights, of_prior = report["bad data"]
    assert of_x.startswith("ValueError: x holds nan at row 159993, column 1")
    assert (
        of_weights.startswith("ValueError: weights must be finite") and "row 159991" in of_weights
    )
    assert of_prior.startswith("ValueError: log_prior must leave") and "row 159989" in of_prior


def test_models_that_are_spread_send_nothing(report):
    """Each device fits its own; where rows are spread, too, it sends statistics alone."""
    assert report["models send"] == []
    assert report["models and rows send"] == ["all-reduce"]


def test_rows_that_are_spread_are_fitted_as_on_one_device(report):
    """With weights, priors and every start, and the same number of iterations."""
    assert {name: gap for name, gap in report["spread"].items() if not gap < 10 * CLOSE} == {}
    assert report["spread in jit"] < CLOSE and report["joint"] < CLOSE


def test_a_step_sends_one_message(report):
    """The statistics, added over all devices; and nothing ever gathers rows."""
    assert report["messages"] == [1, ["all-reduce"]]


def test_derivatives_of_spread_rows_are_those_of_one_device(report):
    """With respect to rows and weights, whatever the adjoint; and nothing gathers rows."""
    assert {name: gap for name, gap in report["derivatives"].items() if not gap < 30 * CLOSE} == {}
    assert report["derivative in a mesh"] < 30 * CLOSE
    assert report["derivative, two forms"] < 100 * CLOSE
    assert report["beside known weights"] < 30 * CLOSE
    assert report["derivatives send"] == ["all-reduce"]


def test_several_meshes_are_refused(report):
    assert report["several meshes"].startswith("ValueError: data are spread over several meshes")


def test_split_features_are_refused_with_the_way_out(report):
    text = report["refused features"]
    assert text.startswith("ValueError: x is split over devices along its last axis")
    assert "PartitionSpec('rows')" in text and text.count("\n") == 0


def test_densities_of_split_points_stay_where_the_points_are(report):
    assert report["points"] < CLOSE
    assert report["labels"] and not report["points gather"]


def test_copies_on_several_devices_are_fitted(report):
    assert report["replicated"] < CLOSE
