"""The hybrid upload broker for Coze: mint a narrow token, or stream the file through."""

__version__ = "0.1.0"
