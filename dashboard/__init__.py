"""Streamlit pages on the results: `app_pages` lays out, `views` says what is shown. Nothing here writes."""
