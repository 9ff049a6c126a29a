import click
import pytest
from click.testing import CliRunner

from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.commands.options import engine_option, engine_options


@click.command()
@click.argument("name")
@engine_options(default_memory="low")
def show(name: str, engine_options: EngineOptions) -> None:
    click.echo(f"{name} {engine_options!r}")


@click.command()
@engine_option
def show_engine(engine: str) -> None:
    click.echo(engine)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(show, ["video", *arguments])
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_without_options_the_choices_are_the_defaults() -> None:
    assert invoke() == f"video {EngineOptions(memory='low')!r}"


def test_options_of_the_execution_provider_come_as_pairs_in_their_order() -> None:
    expected = EngineOptions(
        execution_provider="cuda",
        memory="low",
        allow_cpu_nodes=True,
        provider_options=(("gpu_mem_limit", "2147483648"), ("path", "a=b")),
    )
    arguments = ["--execution-provider", "cuda", "--allow-cpu-nodes"]
    options = ["--provider-option", "gpu_mem_limit=2147483648", "--provider-option", "path=a=b"]
    assert invoke(*arguments, *options) == f"video {expected!r}"


def test_options_of_tensorrt_are_a_flag_and_a_size() -> None:
    expected = EngineOptions(
        engine="tensorrt", memory="low", cuda_graphs=True, weight_budget_bytes=2**30
    )
    arguments = ["--engine", "tensorrt", "--cuda-graphs", "--weight-budget", "1GiB"]
    assert invoke(*arguments) == f"video {expected!r}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--provider-option", "device_id"], "'device_id' is not KEY=VALUE: use for example"),
        (["--provider-option", "=1"], "'=1' is not KEY=VALUE"),
        (["--provider-option", "device_id="], "'device_id=' is not KEY=VALUE"),
        (["--provider-option", "a=1", "--provider-option", "a=2"], "'a' is given twice: give it"),
        (["--weight-budget", "much"], "'much' is not a size in bytes"),
        (["--engine", "tensorflow"], "'tensorflow' is not one of"),
    ],
)
def test_text_that_is_no_value_is_a_usage_error(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(show, ["video", *arguments])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("engine", ["auto", "tensorrt", "tensorrt-rtx"])
def test_an_engine_that_needs_something_built_is_no_choice_where_a_graph_is_run_as_it_is(
    engine: str,
) -> None:
    assert CliRunner().invoke(show_engine, ["--engine", engine]).exit_code == 2
    assert CliRunner().invoke(show_engine, ["--engine", "openvino"]).output == "openvino\n"
    assert CliRunner().invoke(show, ["video", "--engine", engine]).exit_code == 0
