# Generated from chapters/98_answers.py by `course build`; edit that file.
"""What may be asked of the server, in the form of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Token",
    "Penalty",
    "Form",
    "StreamOptions",
    "Dials",
    "FunctionCall",
    "ToolCall",
    "Message",
    "JSONSchema",
    "ResponseFormat",
    "StructuredOutputs",
    "Function",
    "Tool",
    "ChatRequest",
    "CompletionRequest",
    "InputItem",
    "TextFormat",
    "TextOptions",
    "ResponseRequest",
    "TokenizeRequest",
    "DetokenizeRequest",
]

Token = Annotated[int, Field(ge=0)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Form(BaseModel):
    """A form with no unknown fields, and no infinite numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(Form):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Dials(Form):
    """What completions and chats have in common; None leaves a dial to the server."""

    model: str
    n: int = Field(1, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[Token, Annotated[float, Field(ge=-100, le=100)]] = {}
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None  # these four change no answer
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @model_validator(mode="after")
    def check_stops(self) -> "Dials":
        """Refuse stops that could never or would always end a reply."""
        if len(self.stops) > 4 or not all(self.stops):
            raise ValueError("stop: at most 4 stop strings, none of them empty")
        return self


class FunctionCall(Form):
    """What a tool is called with: `arguments` is JSON, in a string."""

    name: str
    arguments: str


class ToolCall(Form):
    """A call that the assistant made, and left to the caller."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Form):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    tool_steps: list[Any] | None = None  # of an answer that is sent back; the content says the same
    refusal: None = None


class JSONSchema(Form):
    """A named schema for an answer."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Form):
    """The form of an answer: text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @model_validator(mode="after")
    def check_schema(self) -> "ResponseFormat":
        """Want a schema where one is promised."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and to no other")
        return self


class StructuredOutputs(Form):
    """Forms that OpenAI's API has not, named as vLLM names them."""

    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def check_one(self) -> "StructuredOutputs":
        """Want one of the two."""
        if (self.regex is None) == (self.choice is None):
            raise ValueError("give either regex or choice")
        return self


class Function(Form):
    """A function that the caller offers."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Form):
    """A tool that the caller offers."""

    type: Literal["function"]
    function: Function


class ChatRequest(Dials):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None  # changes no answer: one call at a time


class CompletionRequest(Dials):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] = False
    structured_outputs: StructuredOutputs | None = None


class InputItem(Form):
    """One message of a response's input."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    id: str | None = None  # these two come back from an answer, and change nothing
    status: str | None = None


class TextFormat(Form):
    """The form of a response's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def check_schema(self) -> "TextFormat":
        """Want a schema where one is promised."""
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("a schema belongs to the type json_schema, and to no other")
        return self


class TextOptions(Form):
    """How a response's text shall be."""

    format: TextFormat | None = None


class ResponseRequest(Form):
    """The body of /v1/responses: text in, text out; nothing is kept on the server."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stream: bool = False
    text: TextOptions | None = None
    tools: list[Any] = Field([], max_length=0)
    previous_response_id: None = None
    truncation: Literal["disabled"] | None = None
    store: bool | None = None  # these change no answer
    metadata: dict[str, str] | None = None
    user: str | None = None


class TokenizeRequest(Form):
    """The body of /tokenize: a text, or the messages of a chat."""

    prompt: str | None = None
    messages: list[Message] | None = None

    @model_validator(mode="after")
    def check_one(self) -> "TokenizeRequest":
        """Want one of the two."""
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Form):
    """The body of /detokenize."""

    tokens: list[Token]
