"""Notifications that wait to be sent."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from raksha.db.columns import new_id
from raksha.db.models.base import Base, CreatedAt, Document, Micros, Text36, options


class Notification(Base):
    """Written in the transaction that changes what it tells of; removed once the bus has it."""

    __tablename__ = "notifications"

    #: grows: what happened to one thing stands in the order in which it happened, for its row was locked meanwhile
    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    #: the same however often it is sent
    message_id: Mapped[Text36] = mapped_column(default=new_id)
    #: `raksha.notifications.Event`
    event: Mapped[str] = mapped_column(String(64))
    payload: Mapped[Document]
    created_at: Mapped[CreatedAt]
    #: of the oldest alone: the scheduler that sends, and until when no other does
    sender_id: Mapped[Text36 | None]
    lease_until: Mapped[Micros] = mapped_column(default=0)

    __table_args__ = options()
