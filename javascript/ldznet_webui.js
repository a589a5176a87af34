// "Send to Inpaint upload" also shows where the picture went. 4 is the place of Inpaint upload among img2img's tabs.
onUiLoaded(() => {
  gradioApp().querySelector("#ldznet_to_inpaint")?.addEventListener("click", () => {
    if (gradioApp().querySelector("#ldznet_mask img")) switch_to_img2img_tab(4);
  });
});
