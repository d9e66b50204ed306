"""What several pages draw alike."""

import streamlit as st

from dashboard import shared
from dashboard.views.banner import Banner


def banner(*some: Banner) -> None:
    """Answers in one frame: each with its badge, its sentence, and what a reader should know beside it."""
    with st.container(border=True):
        for one in some:
            st.badge(shared.plain(one.badge), icon=one.icon, color=one.color)
            st.markdown(f"**{shared.plain(one.sentence)}**")
            for line in one.details:
                st.caption(shared.plain(line))
