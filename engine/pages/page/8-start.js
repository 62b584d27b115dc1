// The page opens.

function showOrigin() {
  const entries = page.origin.flatMap(([name, text]) => [made("dt", "", name), made("dd", "", visible(text, 12000, { lines: true }))]);
  byId("origin").replaceChildren(...entries);
  byId("subtitle").textContent = page.subtitle;
  byId("note").hidden = !page.note;
  byId("note").textContent = page.note || "";
}

function applyTheme() {
  const asked = byId("theme").value;
  const dark = asked === "dark" || (asked === "auto" && window.matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

function listen() {
  byId("prompt").addEventListener("input", (event) => openPrompt(Number(event.target.value)));
  byId("query").addEventListener("input", (event) => openGrid(Number(event.target.value)));
  byId("variant").addEventListener("input", (event) => choose({ variant: Number(event.target.value) }));
  byId("metric").addEventListener("input", (event) => ((state.metric = Number(event.target.value)), render(), choose({})));
  for (const name of ["scale", "hide-first", "hide-special"]) byId(name).addEventListener("input", () => (render(), choose({})));
  byId("fit").addEventListener("input", renderChosen);
  byId("strip").addEventListener("keydown", moveInStrip);
  byId("download").addEventListener("click", () => download(state.prompt, state.grid));
  byId("theme").addEventListener("input", () => (applyTheme(), render()));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (applyTheme(), render()));
  window.addEventListener("resize", renderChosen);
}

applyTheme();
showOrigin();
listen();
byId("prompt-choice").hidden = page.prompts.length < 2;
options(byId("prompt"), page.prompts.map((prompt) => visible(prompt.name, 80)), 0);
openPrompt(0);
