// Small repairs of the theme's accessibility; nothing here is needed to read a page.
"use strict";

document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
for (const block of document.querySelectorAll(".md-typeset pre > code")) {
  if (block.scrollWidth > block.clientWidth) {
    block.tabIndex = 0;
    block.setAttribute("role", "region");
    block.setAttribute("aria-label", "Code, scrolls sideways");
  }
}
