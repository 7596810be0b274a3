"""The page of the browser app."""

import gradio as gr

from brainslices.studio.engine import Engine
from brainslices.studio.inpaint_tab import inpaint_tab
from brainslices.studio.reconstruct_tab import reconstruct_tab
from brainslices.studio.sample_tab import sample_tab

__all__ = ["CSS", "build", "theme"]

CSS = """
.gradio-container { max-width: 1280px !important; width: 100%; margin: auto; }
.slices .grid-wrap { min-height: 0; max-height: none; height: auto; }
@media (max-width: 640px) {
  .slices .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
.status table { font-variant-numeric: tabular-nums; }
"""
NOTE = "For research on methods only, never for diagnosis."


def build(engine: Engine, title: str) -> gr.Blocks:
    """Lay out the page; every visitor has states of their own."""
    with gr.Blocks(title="brainslices studio", analytics_enabled=False) as page:
        gr.Markdown(f"# brainslices studio\n{title}. {NOTE}")
        with gr.Tab("Sample"):
            sample_tab(engine)
        with gr.Tab("Reconstruct"):
            reconstruct_tab(engine)
        with gr.Tab("Inpaint"):
            inpaint_tab(engine)
    return page.queue(default_concurrency_limit=2, max_size=32)


def theme() -> gr.themes.Base:
    """Return a theme whose fonts are those of the system, so that none is fetched."""
    fonts = ["system-ui", "sans-serif"]
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
