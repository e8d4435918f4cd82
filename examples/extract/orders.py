"""What the model must find in an e-mail. Each description is sent with the schema, as a part of the prompt."""

from typing import Literal

from pydantic import BaseModel, Field


class Order(BaseModel):
    """What somebody writes about an order."""

    number: str = Field(description="The order's number, as it stands in the e-mail.", pattern=r"^[A-Z]{2}-\d{4}$")
    product: Literal["bicycle", "helmet", "lock", "pump", "other"] = Field(description="What was ordered.")
    pieces: int = Field(description="How many pieces.", ge=1)
    wish: Literal["refund", "exchange", "question"] = Field(description="What the customer wants.")
    gist: str = Field(description="The e-mail in one sentence.")
