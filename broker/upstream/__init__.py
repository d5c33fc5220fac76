"""The one way out: everything that is said to Coze is said here."""
