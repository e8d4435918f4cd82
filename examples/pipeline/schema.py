"""What the first stage must answer."""

from pydantic import BaseModel, Field


class Questions(BaseModel):
    """Questions that an article answers."""

    questions: list[str] = Field(description="Each one a single sentence.", min_length=2, max_length=3)
