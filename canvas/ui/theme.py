"""The Gradio theme: warm grey neutrals with a vermilion accent, light and dark."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes

SHADES = ("50", "100", "200", "300", "400", "500", "600", "700", "800", "900", "950")
VERMILION = "#fdf3ef #fbe4dc #f7c9ba #f1a58e #ea8065 #dd5c3e #c4452b #a33722 #84301f #6d2b1e #3b130c"
WARM_GREY = "#fbf9f6 #f4f1ec #e9e4dc #d6cfc6 #a8a09c #7d757b #5f5862 #463f4a #2d2832 #1f1b24 #151219"


def canvas_theme() -> gr.themes.Base:
    """The theme of the page; `assets/style.css` uses its variables."""
    theme = gr.themes.Base(
        primary_hue=_color("vermilion", VERMILION),
        secondary_hue=_color("warm_grey", WARM_GREY),
        neutral_hue=_color("warm_grey", WARM_GREY),
        radius_size=sizes.radius_lg,
        text_size=sizes.text_md,
        # Bundled with Gradio; its Source Sans 3 lacks the Latin letters
        font=(fonts.LocalFont("Source Sans Pro", (400, 700)), "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_subdued="*neutral_600",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_padding="0px",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_300",
        block_title_text_weight="600",
        block_title_text_size="*text_sm",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        border_color_primary_dark="*neutral_800",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_placeholder_color="*neutral_500",
        slider_color="*primary_500",
        color_accent_soft_dark="*neutral_800",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color_dark="*neutral_950",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_selected="*neutral_900",
        checkbox_label_background_fill_selected_dark="*neutral_100",
        checkbox_label_text_color_selected="white",
        checkbox_label_text_color_selected_dark="*neutral_950",
        checkbox_label_border_width="1px",
    )


def _color(name: str, scale: str) -> colors.Color:
    shades = {f"c{step}": shade for step, shade in zip(SHADES, scale.split(), strict=True)}
    return colors.Color(name=name, **shades)
