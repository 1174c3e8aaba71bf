"""The components that come with the kernel, brought through the same hooks as everybody's."""

from natterjack.builtin.journals import FileJournal
from natterjack.builtin.triggers import ContextTrigger, EventTrigger, MessageTrigger, SubjectTrigger
from natterjack.builtin.waking import own_triggers

__all__ = ["ContextTrigger", "EventTrigger", "FileJournal", "MessageTrigger", "SubjectTrigger", "own_triggers"]
