"""What each page shows: tables and charts from results, without Streamlit."""
