"""The page of the browser app."""

import html

import gradio as gr

from brainslices.studio.engine import Engine
from brainslices.studio.inpaint_tab import inpaint_tab
from brainslices.studio.reconstruct_tab import reconstruct_tab
from brainslices.studio.sample_tab import sample_tab
from brainslices.studio.surprise_tab import surprise_tab
from brainslices.visualization.html import COMPARISON_CSS

__all__ = ["CSS", "JS", "build", "theme"]

CSS = f"""{COMPARISON_CSS}"""
CSS += """
.gradio-container { max-width: 1280px !important; width: 100%; margin: auto; }
.slices .grid-wrap { min-height: 0; max-height: none; height: auto; }
.slices .caption-label { white-space: normal !important; }
.tab-container button.selected { color: var(--primary-700) !important; }
.dark .tab-container button.selected { color: var(--primary-300) !important; }
.report { width: 100%; height: 80vh; border: 0; }
@media (max-width: 640px) {
  .tab-container button { padding: 0 6px !important; font-size: 13px; }
  .slices .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
.status table { font-variant-numeric: tabular-nums; }
.status td:not(:first-child), .status th { white-space: nowrap; }
"""
# Gradio labels an empty block without a role, so that screen readers skip it, and gives pictures no
# alternative text.
JS = """() => {
  const repair = () => {
    for (const block of document.querySelectorAll("div.empty[aria-label]:not([role])"))
      block.setAttribute("role", "img");
    for (const picture of document.querySelectorAll(".image-container img[alt='']"))
      picture.alt = picture.closest(".block").querySelector("label").innerText.trim();
  };
  new MutationObserver(repair).observe(document.body, { childList: true, subtree: true });
  repair();
}"""
NOTE = "For research on methods only, never for diagnosis."


def build(engine: Engine, title: str, report: str) -> gr.Blocks:
    """Lay out the page; each visitor has their own state.

    Args:
        engine: computes what the page shows.
        title: names the runs.
        report: the HTML page about the runs.
    """
    with gr.Blocks(title=f"{title}: brainslices studio", analytics_enabled=False) as page:
        gr.Markdown(f"# brainslices studio\n{title}. {NOTE}")
        with gr.Tab("Sample"):
            sample_tab(engine)
        with gr.Tab("Reconstruct"):
            reconstruct_tab(engine)
        with gr.Tab("Inpaint"):
            inpaint_tab(engine)
        if engine.can_score:
            with gr.Tab("Surprise"):
                surprise_tab(engine)
        with gr.Tab("Runs") as runs:
            shown = gr.HTML("The report is loading.")
        # Sent when it is looked at: it holds a library of several megabytes.
        runs.select(lambda: _framed(report), None, shown, api_visibility="private")
    return page.queue(default_concurrency_limit=2, max_size=32)


def _framed(page: str) -> str:
    """Return a frame that shows a page, isolated from the app's."""
    return (
        f'<iframe title="Report of the runs" class="report" sandbox="allow-scripts allow-popups" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def theme() -> gr.themes.Base:
    """Return a theme with the system's own fonts, so that none is fetched, and contrast AA."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_cancel_background_fill="*neutral_200",
        button_cancel_background_fill_hover="*neutral_300",
        button_cancel_text_color="*neutral_900",
        button_cancel_background_fill_dark="*neutral_600",
    )
