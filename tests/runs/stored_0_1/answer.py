"""What a stage's answers must look like, and a function over them."""

from pydantic import BaseModel


class Topic(BaseModel):
    topic: str
    urgent: bool


def score(row: dict) -> int:
    return len(row["text"])
