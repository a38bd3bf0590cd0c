// Two buttons under an answer rate it as good or bad. A second click removes the rating.

/** Make the buttons for a question of the log. Returns null if the question is not logged. */
export function rating(questionId) {
  if (!questionId) return null;
  const box = document.createElement("p");
  box.className = "rating";
  const buttons = [["Good", "Good answer", 1], ["Bad", "Bad answer", -1]].map(([text, label, value]) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: text, title: label, ariaLabel: label, ariaPressed: "false" });
    button.addEventListener("click", () => rate(button, button.ariaPressed === "true" ? 0 : value));
    return button;
  });
  const note = document.createElement("span");

  async function rate(pressed, value) {
    const options = { method: "POST", credentials: "same-origin", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ rating: value }) };
    const response = await fetch(`/questions/${questionId}/rating`, options).catch(() => null);
    note.textContent = response?.ok ? "" : "The rating could not be saved. Try again.";
    if (response?.ok) for (const button of buttons) button.ariaPressed = String(button === pressed && value !== 0);
  }

  box.append(...buttons, note);
  return box;
}
