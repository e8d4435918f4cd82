"""What the model must answer about a review."""

from typing import Literal

from pydantic import BaseModel, Field


class Label(BaseModel):
    """A review in three fields."""

    sentiment: Literal["positive", "mixed", "negative"] = Field(description="How satisfied the customer is.")
    aspects: list[str] = Field(description="What the review speaks of, in one or two words each.", max_length=5)
    gist: str = Field(description="The review in one sentence.")
