"""Coze's names for what a token may do, and the scopes that stand for them here."""

from __future__ import annotations

from collections.abc import Iterable

from broker.auth.scopes import (
    BOTS_READ,
    CHAT,
    CONVERSATIONS,
    FILES_READ,
    FILES_UPLOAD,
    USERS_READ,
    WORKFLOW_RUN,
    WORKSPACES_READ,
)

DEFAULT_SCOPES = (
    FILES_UPLOAD,
    FILES_READ,
    CHAT,
    WORKFLOW_RUN,
    CONVERSATIONS,
    BOTS_READ,
    WORKSPACES_READ,
    USERS_READ,
)
"""What a token has that names no permission: all that Coze's own API gives, nothing that is the broker's."""

ACCOUNT = {
    "Account.uploadFile": FILES_UPLOAD,
    "File.retrieveFile": FILES_READ,
    "Conversation.getChat": CHAT,
    "Conversation.cancelChat": CHAT,
    "Conversation.submitToolChat": CHAT,
    "Account.createConversation": CONVERSATIONS,
    "Account.listConversation": CONVERSATIONS,
    "Conversation.retrieveConversation": CONVERSATIONS,
    "Conversation.editConversation": CONVERSATIONS,
    "Conversation.createMessage": CONVERSATIONS,
    "Conversation.listMessage": CONVERSATIONS,
    "Conversation.modifyMessage": CONVERSATIONS,
    "Conversation.retrieveMessage": CONVERSATIONS,
    "Conversation.deleteMessage": CONVERSATIONS,
    "Conversation.feedback": CONVERSATIONS,
    "Account.listWorkspace": WORKSPACES_READ,
}
WORKSPACE = {
    "Bot.chat": CHAT,
    "Bot.getMetadata": BOTS_READ,
    "Bot.getBasicMetadata": BOTS_READ,
    "Bot.listBot": BOTS_READ,
    "Workflow.run": WORKFLOW_RUN,
}
_BY_ACTION = {name.partition(".")[2]: scope for name, scope in {**ACCOUNT, **WORKSPACE}.items()}
_NAMED = frozenset(_BY_ACTION.values())


def scopes_for(names: Iterable[str]) -> tuple[str, ...]:
    """The scopes that permissions ask for, each as ``Resource.action`` or its action alone.

    What the broker can't do is passed over: a token that lacks it has less than was asked for, never more.
    """
    actions = (name.rpartition(".")[2] for name in names)
    return tuple(dict.fromkeys(_BY_ACTION[action] for action in actions if action in _BY_ACTION))


def without_name(scopes: Iterable[str]) -> tuple[str, ...]:
    """Those scopes that no permission of Coze's stands for."""
    return tuple(scope for scope in scopes if scope not in _NAMED)


def names_for(scopes: Iterable[str], names: dict[str, str]) -> list[str]:
    """Which of ``ACCOUNT`` or ``WORKSPACE`` a token with these scopes has."""
    had = set(scopes)
    return [name for name, scope in names.items() if scope in had]
