"""Can I trust this?"""

import streamlit as st

from dashboard import drawing, shared
from dashboard.views import method
from harness import reproduce
from harness.recommend import Limits
from harness.spec import dump_study


@st.cache_resource(max_entries=shared.KEPT, show_spinner=False)
def read(folder: str, version: str, limits: Limits, _view: shared.View) -> method.Tables:
    return method.tables(_view.evidence, _view.decision, _view.store, _view.store.declared())


view = shared.current()
evidence, decision, records = view.evidence, view.decision, view.evidence.records
declared = view.store.declared()
comparison = decision.comparison
tables = read(str(view.store.folder), view.version, view.decision.limits, view)

st.header("Can I trust this?")
st.caption(shared.plain(evidence.spec.question or "No question was given."))
drawing.banner(tables.banner)

st.subheader("What is measured")
st.table(tables.definitions, hide_index=True, alt="What each number is and how many runs have it")

st.subheader("How a verdict is made")
for rule in method.rules(evidence, declared, comparison):
    st.markdown(f"**{shared.plain(rule.name)}.** {shared.plain(rule.rule)}")
    st.caption(shared.plain(f"Here: {rule.here}"))
table = method.verdicts(comparison, decision)
if len(table):
    st.dataframe(
        table, hide_index=True, alt=f"Verdicts of {len(table)} configurations with what they rest on",
        column_config={"Configuration": st.column_config.TextColumn(pinned=True)},
    )  # fmt: skip
    note = method.margin_note(decision, evidence)
    if note:
        st.caption(shared.plain(note))
else:
    st.text("There is no verdict to show: the baseline and another configuration both need confirmed runs.")

if evidence.spec.origin is None:
    st.subheader("Declared before the first run")
    st.dataframe(
        method.declaration(declared, evidence.spec), hide_index=True,
        alt="What was declared before the first run, and what the study file says now",
    )  # fmt: skip
    st.caption("What was changed afterwards makes every answer exploratory. Prices may change, they are no evidence.")

st.subheader("What it is about")
st.dataframe(tables.hashes, hide_index=True, alt="Hashes of model, data, rows and question")

st.subheader("Tasks")
asked = tables.tasks
if len(asked):
    st.dataframe(
        asked, hide_index=True, alt=f"{len(asked)} scores: what runs are asked and how many items",
        column_config={"Task": st.column_config.TextColumn(pinned=True)},
    )  # fmt: skip
    st.caption(shared.plain(method.zero_note(evidence)))
else:
    st.text("No run has a score yet.")

st.subheader("Versions and machines")
if records:
    made, ran = st.columns(2)
    made.dataframe(tables.versions, hide_index=True, alt="Versions of the packages that runs were made with")
    ran.dataframe(tables.machines, hide_index=True, alt="Hardware and system that runs were made on")
else:
    st.text("No run yet.")

st.subheader("Known limits")
st.markdown("\n".join(f"- {shared.plain(line)}" for line in tables.limits))

st.subheader("Make it again, and cite it")
origin = evidence.spec.origin
name = evidence.spec.name
st.code(
    reproduce.bring(origin.tool, shared.root(), name) if origin else reproduce.again(view.store),
    language=None,
    wrap_lines=True,
)
st.code(tables.citation, language=None, wrap_lines=True)
st.download_button(
    "Study file", dump_study(evidence.spec), f"{evidence.spec.name}.yaml", "application/yaml",
    icon=":material/download:", help="The question with every default spelled out.", on_click="ignore",
)  # fmt: skip
