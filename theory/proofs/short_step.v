(** Theorem D: the short step, which knows [beta] alone, and every step that lowers the loss as far. The bound on the average
    gap holds for all numbers of iterations at once. *)

From FrankWolfe Require Import setting assumptions lemmas huber.

(** The decrease pays for all gaps, as the oracle's answers show them. *)
Definition phi_telescoped : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D : R),
  Setting P run -> Diameter P D ->
  Static P -> FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  mean (fun t => phi (Rmax 0 (ghat P run t)) (beta P * D ^ 2)) (T run) <= decrease P run / INR (T run).

(** Telescoped: with the decrease of the run itself. *)
Definition telescoped : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D : R),
  Setting P run -> Diameter P D ->
  Static P -> FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  mean (gap run) (T run) <= phi_inverse (decrease P run / INR (T run)) (beta P * D ^ 2) + mean (eps run) (T run).

(** Theorem A's: [sqrt (2 M beta) D/sqrt T] for [T >= 2 M/(beta D^2)], and [M/T + beta D^2/2] below. *)
Definition value (M C T : R) : R := phi_inverse (M / T) C.

(** Closed: with [eta_t = clip(ghat_t/(beta |V_t - W_t|^2), 0, 1)]. *)
Definition statement : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** No step in [0, 1] is sure of a larger fall than the short one. *)
Definition short_step_minimises : Prop :=
  forall ghat bend s : R, 0 <= bend -> 0 <= s <= 1 ->
  0 <= short_step ghat bend <= 1 /\
  s * ghat - s ^ 2 * (bend / 2) <= short_step ghat bend * ghat - short_step ghat bend ^ 2 * (bend / 2).

(** No point of the segment from [W_t] to [V_t] has a lower loss than [W_{t+1}]. *)
Definition Line_search {E : InnerProductSpace} (P : Problem E) (run : Run E) : Prop :=
  forall t s, iteration run t -> 0 <= s <= 1 -> L P t (W run (S t)) <= L P t (W run t + s * (V run t - W run t)).

(** Line search inherits the theorem. *)
Definition line_search_qualifies : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E),
  Setting P run -> FrankWolfeStep P run true -> Line_search P run -> ShortStepOrBetter P run.

(** Lacoste-Julien 2016, Theorem 1, bounds the least gap: [max(2 M, C)/sqrt(T + 1)] there, with [T + 1] iterations. *)
Definition lacoste_julien (M C T : R) : R := Rmax (2 * M) C / sqrt T.

(** Theorem D is nowhere weaker. *)
Definition below_lacoste_julien : Prop := forall M C T : R, 0 <= M -> 0 <= C -> 1 <= T -> value M C T <= lacoste_julien M C T.

(** So his bound of the least gap follows. *)
Definition least_gap : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  exists t, iteration run t /\ gap run t <= lacoste_julien M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** * Proof *)

(** ** The short step *)

(** It is where phi, as a maximum, is reached. *)
Lemma short_step_is_the_peak ghat bend : 0 < ghat -> short_step ghat bend = peak ghat bend.
Proof. intros positive. unfold short_step, peak. destruct (Rle_dec ghat 0); [lra | reflexivity]. Qed.

Theorem ShortStepMinimises : short_step_minimises.
Proof.
  intros ghat bend s bent range. destruct (Rlt_le_dec 0 ghat) as [along | against].
  - rewrite short_step_is_the_peak by assumption. split; [apply peak_in_range; lra |].
    rewrite <- phi_at_its_peak by lra. apply phi_is_above; lra.
  - unfold short_step. destruct (Rle_dec ghat 0); [| lra]. split; [lra |].
    (* s ghat <= 0 <= s^2 bend/2 *)
    assert (0 <= s * - ghat) by (apply Rmult_le_pos; lra).
    assert (0 <= s ^ 2 * (bend / 2)) by (apply Rmult_le_pos; [apply pow2_ge_0 | lra]). lra.
Qed.

Section Falls.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E) (D : R).
  Hypotheses (setting : Setting P run) (step : FrankWolfeStep P run true).

  (** A step from [W_t] that ends no higher than [s] does falls by what the parabola says of [s]. *)
  Lemma fall_of_a_step t s : iteration run t -> 0 <= s <= 1 ->
    L P t (W run (S t)) <= L P t (W run t + s * (V run t - W run t)) ->
    s * ghat P run t - s ^ 2 * (beta P / 2 * distance2 run t) <= fall P run t.
  Proof. intros range s01 lower. pose proof (below_parabola P run setting t s step range s01). unfold fall. lra. Qed.

  Hypotheses (diameter : Diameter P D) (short : ShortStepOrBetter P run).

  Lemma fall_beats_every_step t s : iteration run t -> 0 <= s <= 1 ->
    s * ghat P run t - s ^ 2 * (beta P / 2 * distance2 run t) <= fall P run t.
  Proof.
    intros range s01. destruct (short t range) as [clipped | better]; [| now apply better].
    destruct (proj2 step t range) as (bounds & _ & lower).
    pose proof (fall_of_a_step t _ range bounds lower) as falls. rewrite clipped in falls.
    pose proof (bend_nonneg P run setting t) as bend.
    pose proof (proj2 (ShortStepMinimises (ghat P run t) (beta P * distance2 run t) s ltac:(lra) s01)).
    unfold Rdiv in *. lra.
  Qed.

  (** [phi(max(0, ghat_t)) <= L_t(W_t) - L_t(W_{t+1})] *)
  Lemma fall_is_at_least_phi t : iteration run t -> phi (Rmax 0 (ghat P run t)) (beta P * D ^ 2) <= fall P run t.
  Proof.
    intros range. pose proof (curvature_nonneg P run setting D) as bent.
    pose proof (bend_below_diameter P run setting D t step diameter range) as below.
    rewrite phi_at_its_peak by (assumption || apply Rmax_l).
    set (s := peak _ _). assert (s01 : 0 <= s <= 1) by (apply peak_in_range; [assumption | apply Rmax_l]).
    destruct (Rle_dec 0 (ghat P run t)) as [along | against].
    - rewrite Rmax_right by assumption. pose proof (fall_beats_every_step t s range s01).
      (* s^2 beta/2 |V_t - W_t|^2 <= s^2 C/2 *)
      pose proof (Rmult_le_compat_l (s ^ 2) _ _ (pow2_ge_0 s) below). lra.
    - rewrite Rmax_left by lra. pose proof (fall_beats_every_step t 0 range ltac:(lra)).
      assert (0 <= s ^ 2 * (beta P * D ^ 2 / 2)) by (apply Rmult_le_pos; [apply pow2_ge_0 | lra]). lra.
  Qed.
End Falls.

(** ** Summed *)

Lemma phi_nonneg g C : 0 <= C -> 0 <= g -> 0 <= phi g C.
Proof. intros HC Hg. pose proof (phi_is_above g C 0 HC Hg ltac:(lra)). lra. Qed.

(** For losses that may move: what all falls together leave to the gaps. Theorem E uses it too. *)
Lemma phi_summed {E : InnerProductSpace} (P : Problem E) (run : Run E) D :
  Setting P run -> Diameter P D -> FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  mean (fun t => phi (Rmax 0 (ghat P run t)) (beta P * D ^ 2)) (T run) <= sum (fall P run) (T run) / INR (T run).
Proof.
  intros setting diameter step short. pose proof (horizon_positive _ (some_iteration _ _ setting)).
  apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat |].
  apply sum_le. intros t range. now apply fall_is_at_least_phi.
Qed.

Lemma mean_nonneg f n : (1 <= n)%nat -> (forall t, 0 <= f t) -> 0 <= mean f n.
Proof. intros some above. apply Rle_mult_inv_pos; [now apply sum_nonneg | now apply horizon_positive]. Qed.

(** Jensen: what pays for every [phi(g_t)] pays for phi of the mean. *)
Lemma mean_below_phi_inverse g y n C : (1 <= n)%nat -> 0 <= C -> (forall t, 0 <= g t) ->
  mean (fun t => phi (g t) C) n <= y -> mean g n <= phi_inverse y C.
Proof.
  intros some bent above pays. apply phi_inverse_bounds; [assumption | now apply mean_nonneg | |].
  - eapply Rle_trans; [| exact pays]. apply mean_nonneg; [assumption |]. intros t. now apply phi_nonneg.
  - eapply Rle_trans; [now apply phi_of_a_mean | exact pays].
Qed.

(** So the mean gap is bounded by whatever bounds the sum of the falls. *)
Lemma summed {E : InnerProductSpace} (P : Problem E) (run : Run E) D falls :
  Setting P run -> Diameter P D -> FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  sum (fall P run) (T run) <= falls ->
  mean (gap run) (T run) <= phi_inverse (falls / INR (T run)) (beta P * D ^ 2) + mean (eps run) (T run).
Proof.
  intros setting diameter step short bounded.
  pose proof (some_iteration _ _ setting) as some. pose proof (horizon_positive _ some) as positive.
  set (g := fun t => Rmax 0 (ghat P run t)).
  assert (jensen : mean g (T run) <= phi_inverse (falls / INR (T run)) (beta P * D ^ 2)).
  { apply mean_below_phi_inverse; [assumption | now apply (curvature_nonneg P run) | intros t; apply Rmax_l |].
    eapply Rle_trans; [now apply phi_summed |]. apply Rmult_le_compat_r; [| assumption]. left. now apply Rinv_0_lt_compat. }
  (* g_t - eps_t <= ghat_t <= max(0, ghat_t) *)
  assert (gaps : sum (gap run) (T run) <= sum (fun t => g t + eps run t) (T run)).
  { apply sum_le. intros t range. pose proof (ghat_is_nearly_the_gap P run setting t range).
    pose proof (Rmax_r 0 (ghat P run t)). unfold g. lra. }
  rewrite sum_plus, (sum_is_mean g), (sum_is_mean (eps run)) in gaps by assumption.
  apply mean_le; [assumption |]. pose proof (Rmult_le_compat_l (INR (T run)) _ _ ltac:(lra) jensen). lra.
Qed.

Theorem ShortStepPhiTelescoped : phi_telescoped.
Proof.
  intros E P run D setting diameter static step short.
  rewrite <- (falls_add_up P run static). now apply phi_summed.
Qed.

Theorem ShortStepTelescoped : telescoped.
Proof.
  intros E P run D setting diameter static step short.
  apply summed; try assumption. rewrite (falls_add_up P run static). lra.
Qed.

Theorem ShortStepBound : statement.
Proof.
  intros E P run D M setting diameter initial static step short.
  apply summed; try assumption. rewrite (falls_add_up P run static). now apply decrease_below_initial_gap.
Qed.

(** ** Line search *)

Theorem LineSearchQualifies : line_search_qualifies.
Proof. intros E P run setting step search t range. right. intros s s01. apply fall_of_a_step; auto. Qed.

(** ** Beside Lacoste-Julien *)

Theorem BelowLacosteJulien : below_lacoste_julien.
Proof.
  intros M C n M_nonneg C_nonneg some. unfold value, phi_inverse, lacoste_julien.
  pose proof (Rmax_l (2 * M) C). pose proof (Rmax_r (2 * M) C). set (top := Rmax (2 * M) C) in *.
  assert (root : 0 < sqrt n) by (apply sqrt_lt_R0; lra). pose proof (sqrt_sqrt n ltac:(lra)) as square.
  destruct (Rle_dec (M / n) (C / 2)) as [small | large].
  - (* 2 M C <= max(2 M, C)^2 *)
    replace (2 * C * (M / n)) with (2 * M * C / n) by (field; lra).
    rewrite sqrt_div_alt by lra. apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat |].
    rewrite <- (sqrt_square top) by lra. apply sqrt_le_1_alt. apply Rmult_le_compat; lra.
  - (* M/T + C/2 <= 2 M/T, and sqrt T <= T *)
    assert (1 <= sqrt n) by (rewrite <- sqrt_1; now apply sqrt_le_1_alt).
    apply Rle_trans with (2 * M / n); [lra |].
    apply Rle_trans with (2 * M / sqrt n).
    + apply Rmult_le_compat_l; [lra |]. apply Rinv_le_contravar; [assumption |]. nra.
    + apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat | assumption].
Qed.

(** Of some numbers the least is at most their mean. *)
Lemma some_at_most_the_mean f b n : (1 <= n)%nat -> sum f n <= INR n * b -> exists t, (1 <= t <= n)%nat /\ f t <= b.
Proof.
  induction n as [| n IH]; intros some below; [lia |]. rewrite S_INR in below. simpl in below.
  destruct (Rle_dec (f (S n)) b) as [small | large]; [exists (S n); split; [lia | assumption] |].
  destruct n as [| n]; [simpl in below; lra |].
  destruct IH as (t & range & small); [lia | lra |]. exists t. split; [lia | assumption].
Qed.

Theorem LeastGapOfShortSteps : least_gap.
Proof.
  intros E P run D M setting diameter initial static step short.
  pose proof (some_iteration _ _ setting) as some. pose proof (horizon_positive _ some).
  apply some_at_most_the_mean; [assumption |]. rewrite (sum_is_mean (gap run)) by assumption.
  apply Rmult_le_compat_l; [lra |].
  eapply Rle_trans; [exact (ShortStepBound E P run D M setting diameter initial static step short) |].
  apply Rplus_le_compat_r, BelowLacosteJulien.
  - now apply (initial_gap_nonneg P run).
  - now apply (curvature_nonneg P run).
  - now apply (le_INR 1).
Qed.
