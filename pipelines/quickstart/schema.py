"""The structured output that the quickstart asks for."""

from typing import Literal

from pydantic import BaseModel, Field

Topic = Literal["billing", "delivery", "battery", "app", "returns", "warranty", "feature", "praise", "other"]


class Summary(BaseModel):
    """What a support team needs to know of a ticket before opening it."""

    summary: str = Field(description="What the customer wants or reports, in one or two English sentences.")
    topic: Topic = Field(description="What the ticket is mainly about; `other` if nothing else fits.")
    sentiment: Literal["positive", "neutral", "negative"] = Field(description="How the customer feels.")
    urgent: bool = Field(description="True if somebody may be hurt, is stranded, or has a deadline within days.")
