"""Why can't my server reach Coze? One file is one step of the way, and says what it found, what that means
and what to do.
"""
